//! The GGUF container: metadata and tensor table, nothing about models.
//!
//! Layout, little-endian: "GGUF", version u32, tensor count u64, key count u64; then per key a
//! string, a type u32 and a value; then per tensor a string, the number of dimensions u32, the
//! dimensions u64 (fastest first), a type u32 and an offset u64; then padding to `general.alignment`
//! and the tensor data. A string is a length u64 and bytes. Versions 2 and 3 are laid out alike.
//! A damaged file must not hurt: no length is believed before it is compared with what is left.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::dequantize::Encoding;
use crate::weights::WeightError;

/// A metadata value. Numbers keep their value, not their width.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i128>),
    Floats(Vec<f64>),
    Bools(Vec<bool>),
}

/// Where a tensor lies and what it is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TensorEntry {
    /// Rows first, as in PyTorch (GGUF writes the fastest dimension first).
    pub shape: Vec<i64>,
    pub encoding: Encoding,
    /// From the start of the file.
    pub start: u64,
    pub num_bytes: u64,
}

/// An open GGUF file whose header has been read and checked against the size of the file.
#[derive(Debug)]
pub(super) struct Container {
    pub path: PathBuf,
    file: File,
    pub metadata: HashMap<String, Value>,
    pub tensors: HashMap<String, TensorEntry>,
}

impl Container {
    pub fn open(path: &Path) -> Result<Container, WeightError> {
        let io = |source| WeightError::Io {
            path: path.to_path_buf(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let file_bytes = file.metadata().map_err(io)?.len();
        let mut header = Header {
            path,
            reader: BufReader::with_capacity(1 << 20, file.try_clone().map_err(io)?),
            position: 0,
            file_bytes,
        };
        let (metadata, tensors) = header.read()?;
        Ok(Container {
            path: path.to_path_buf(),
            file,
            metadata,
            tensors,
        })
    }

    /// The encoded bytes of a tensor.
    pub fn read(&self, entry: &TensorEntry) -> Result<Vec<u8>, WeightError> {
        let mut bytes = vec![0; entry.num_bytes as usize];
        self.file
            .read_exact_at(&mut bytes, entry.start)
            .map_err(|source| WeightError::Io {
                path: self.path.clone(),
                source,
            })?;
        Ok(bytes)
    }
}

/// Reads the header from front to back.
struct Header<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    position: u64,
    file_bytes: u64,
}

type Tables = (HashMap<String, Value>, HashMap<String, TensorEntry>);

impl Header<'_> {
    fn read(&mut self) -> Result<Tables, WeightError> {
        if self.array::<4>("the magic bytes")? != *b"GGUF" {
            return Err(self.malformed("not a GGUF file: it does not start with 'GGUF'"));
        }
        match self.u32("the version")? {
            2 | 3 => {}
            version if version.swap_bytes() <= 3 => {
                return Err(self.malformed("a big-endian GGUF file; only little-endian is read"));
            }
            version => {
                return Err(
                    self.malformed(format!("GGUF version {version}; versions 2 and 3 are read"))
                );
            }
        }
        let num_tensors = self.u64("the tensor count")?;
        let num_keys = self.u64("the metadata count")?;
        // The shortest entries: a tensor of no name and no dimensions, a key of no name and a byte.
        self.plausible(num_tensors, 24, "tensors")?;
        self.plausible(num_keys, 13, "metadata keys")?;

        let mut metadata = HashMap::new();
        for _ in 0..num_keys {
            let key = self.text("a metadata key")?;
            let kind = self.u32(&key)?;
            let value = self.value(kind, &key)?;
            metadata.insert(key, value);
        }
        let mut rows = Vec::new();
        for _ in 0..num_tensors {
            rows.push(self.tensor_row()?);
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(Value::Integer(n)) if (1..=1 << 30).contains(n) => *n as u64,
            Some(other) => {
                return Err(self.malformed(format!("general.alignment is {other:?}")));
            }
        };
        let data_start = self.position.next_multiple_of(alignment);
        let mut tensors = HashMap::new();
        for (name, mut entry) in rows {
            if entry.start % alignment != 0 {
                return Err(self.malformed(format!(
                    "tensor '{name}' starts at {}, which is no multiple of {alignment}",
                    entry.start
                )));
            }
            let end = data_start
                .checked_add(entry.start)
                .and_then(|start| start.checked_add(entry.num_bytes));
            match end {
                Some(end) if end <= self.file_bytes => entry.start += data_start,
                _ => return Err(self.too_short(&format!("tensor '{name}'"), end)),
            }
            if tensors.insert(name.clone(), entry).is_some() {
                return Err(self.malformed(format!("tensor '{name}' is listed twice")));
            }
        }
        Ok((metadata, tensors))
    }

    fn tensor_row(&mut self) -> Result<(String, TensorEntry), WeightError> {
        let name = self.text("a tensor name")?;
        let num_dims = self.u32(&name)?;
        if !(1..=4).contains(&num_dims) {
            return Err(self.malformed(format!("tensor '{name}' has {num_dims} dimensions")));
        }
        let mut dims = Vec::new();
        for _ in 0..num_dims {
            dims.push(self.u64(&name)?);
        }
        let code = self.u32(&name)?;
        let start = self.u64(&name)?;
        let encoding = Encoding::from_code(code).ok_or_else(|| {
            self.malformed(format!(
                "tensor '{name}' has type {code}; F32 (0), F16 (1), Q4_1 (3) and Q8_0 (8) are \
                 read: take a file quantised that way"
            ))
        })?;
        let num_bytes = encoding.num_bytes(&dims).ok_or_else(|| {
            self.malformed(format!(
                "tensor '{name}' of type {encoding:?} can't have the dimensions {dims:?}"
            ))
        })?;
        // num_bytes bounds every dimension, so that they fit i64.
        let shape = dims.iter().rev().map(|&dim| dim as i64).collect();
        let entry = TensorEntry {
            shape,
            encoding,
            start,
            num_bytes,
        };
        Ok((name, entry))
    }

    fn value(&mut self, kind: u32, key: &str) -> Result<Value, WeightError> {
        Ok(match kind {
            0..=5 | 10 | 11 => Value::Integer(self.integer(kind, key)?),
            6 | 12 => Value::Float(self.float(kind, key)?),
            7 => Value::Bool(self.bool(key)?),
            8 => Value::Text(self.text(key)?),
            9 => {
                let kind = self.u32(key)?;
                let count = self.u64(key)?;
                let least = match kind {
                    0 | 1 | 7 => 1,
                    2 | 3 => 2,
                    4..=6 => 4,
                    8 | 10..=12 => 8,
                    _ => return Err(self.unknown_type(kind, key)),
                };
                self.plausible(count, least, key)?;
                let range = 0..count;
                match kind {
                    6 | 12 => Value::Floats(
                        range
                            .map(|_| self.float(kind, key))
                            .collect::<Result<_, _>>()?,
                    ),
                    7 => Value::Bools(range.map(|_| self.bool(key)).collect::<Result<_, _>>()?),
                    8 => Value::Texts(range.map(|_| self.text(key)).collect::<Result<_, _>>()?),
                    _ => Value::Integers(
                        range
                            .map(|_| self.integer(kind, key))
                            .collect::<Result<_, _>>()?,
                    ),
                }
            }
            _ => return Err(self.unknown_type(kind, key)),
        })
    }

    fn integer(&mut self, kind: u32, key: &str) -> Result<i128, WeightError> {
        Ok(match kind {
            0 => u8::from_le_bytes(self.array(key)?).into(),
            1 => i8::from_le_bytes(self.array(key)?).into(),
            2 => u16::from_le_bytes(self.array(key)?).into(),
            3 => i16::from_le_bytes(self.array(key)?).into(),
            4 => u32::from_le_bytes(self.array(key)?).into(),
            5 => i32::from_le_bytes(self.array(key)?).into(),
            10 => u64::from_le_bytes(self.array(key)?).into(),
            11 => i64::from_le_bytes(self.array(key)?).into(),
            _ => return Err(self.unknown_type(kind, key)),
        })
    }

    /// An f32 becomes the f64 with the same shortest decimal form: 1e-5f32 is meant as 1e-5.
    fn float(&mut self, kind: u32, key: &str) -> Result<f64, WeightError> {
        if kind == 12 {
            return Ok(f64::from_le_bytes(self.array(key)?));
        }
        let value = f32::from_le_bytes(self.array(key)?);
        Ok(value.to_string().parse().expect("Rust reads what it wrote"))
    }

    fn bool(&mut self, key: &str) -> Result<bool, WeightError> {
        match self.array(key)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [byte] => Err(self.malformed(format!("'{key}' holds {byte} where a bool belongs"))),
        }
    }

    fn text(&mut self, what: &str) -> Result<String, WeightError> {
        let count = self.u64(what)?;
        self.claim(count, what)?;
        let mut bytes = vec![0; count as usize];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| self.malformed(format!("{what} is not UTF-8 text")))
    }

    fn u32(&mut self, what: &str) -> Result<u32, WeightError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, WeightError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], WeightError> {
        self.claim(N as u64, what)?;
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), WeightError> {
        self.position += bytes.len() as u64;
        self.reader
            .read_exact(bytes)
            .map_err(|source| WeightError::Io {
                path: self.path.to_path_buf(),
                source,
            })
    }

    /// Checks that `count` more bytes are there.
    fn claim(&self, count: u64, what: &str) -> Result<(), WeightError> {
        match self.position.checked_add(count) {
            Some(end) if end <= self.file_bytes => Ok(()),
            end => Err(self.too_short(what, end)),
        }
    }

    /// Checks that `count` things of at least `least` bytes each can be there.
    fn plausible(&self, count: u64, least: u64, what: &str) -> Result<(), WeightError> {
        let left = self.file_bytes - self.position;
        if count <= left / least {
            return Ok(());
        }
        Err(self.malformed(format!(
            "it claims {count} entries for {what}, more than its {left} remaining bytes can hold; \
             the file is damaged or cut short: download it again"
        )))
    }

    fn unknown_type(&self, kind: u32, key: &str) -> WeightError {
        self.malformed(format!("metadata key '{key}' has the unknown type {kind}"))
    }

    fn too_short(&self, what: &str, end: Option<u64>) -> WeightError {
        let needs = end.map_or("more than any file has".to_string(), |end| end.to_string());
        self.malformed(format!(
            "the file ends at byte {}, {what} needs {needs}: download it again",
            self.file_bytes
        ))
    }

    fn malformed(&self, problem: impl Into<String>) -> WeightError {
        WeightError::Malformed {
            path: self.path.to_path_buf(),
            problem: problem.into(),
        }
    }
}
