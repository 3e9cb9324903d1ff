//! Rows of a JSONL file: one JSON object a line, read line by line, so that no more than a line is in memory.

use std::io::{self, BufRead, BufReader, Read};

use super::error::DatasetError;
use super::fields::Fields;
use super::placed_file::PlacedFile;

/// A longer line is refused before it is in memory.
const MAX_LINE_BYTES: usize = 64 << 20;
/// Bytes read at once.
const BUFFER_BYTES: usize = 1 << 18;
/// Some editors begin a file with it.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A line, which may be none that can be used.
#[derive(Debug)]
pub(crate) enum Line<'a> {
    /// White space alone.
    Blank,
    /// A JSON object.
    Row(Fields<'a>),
    /// Something else, and why it is no row.
    Broken(String),
}

/// Calls `each` with every line and the offset of its first byte, in order; returns the BLAKE3 digest of
/// the whole file.
pub(crate) fn scan(
    file: &PlacedFile,
    mut each: impl FnMut(u64, Line<'_>) -> Result<(), DatasetError>,
) -> Result<blake3::Hash, DatasetError> {
    let digested = Digesting {
        inner: file.reader_at(0),
        hasher: blake3::Hasher::new(),
    };
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, digested);
    let (mut offset, mut line) = (0, Vec::new());
    loop {
        let num_bytes = read_line(&mut reader, &mut line).map_err(|error| file.io_error(error))?;
        if num_bytes == 0 {
            return Ok(reader.into_inner().hasher.finalize());
        }
        each(offset, parsed(&line, offset))?;
        offset += num_bytes;
    }
}

/// Hands the line that comes `num_lines` after byte `offset` to `with`.
pub(crate) fn read<T>(
    file: &PlacedFile,
    (offset, num_lines): (u64, u64),
    with: impl FnOnce(Line<'_>) -> T,
) -> Result<T, DatasetError> {
    let mut reader = BufReader::new(file.reader_at(offset));
    let mut at = offset;
    let mut line = Vec::new();
    let mut read = || {
        for _ in 0..num_lines {
            at += reader.skip_until(b'\n')? as u64;
        }
        read_line(&mut reader, &mut line)
    };
    read().map_err(|error| file.io_error(error))?;
    Ok(with(parsed(&line, at)))
}

/// Reads a line into `line`, its end left out, and returns its bytes, the end included; 0 at the end of the
/// file. Of a line that is too long, `line` gets more than [`MAX_LINE_BYTES`] and not all.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<u64> {
    line.clear();
    let limit = MAX_LINE_BYTES as u64 + 2;
    let mut num_bytes = reader.by_ref().take(limit).read_until(b'\n', line)? as u64;
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if num_bytes == limit {
        num_bytes += reader.skip_until(b'\n')? as u64;
    }
    Ok(num_bytes)
}

/// What `line` holds, which begins at byte `offset` of its file.
fn parsed(line: &[u8], offset: u64) -> Line<'_> {
    let line = match offset {
        0 => line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line),
        _ => line,
    };
    if line.len() > MAX_LINE_BYTES {
        return Line::Broken(format!("the line has more than {MAX_LINE_BYTES} bytes"));
    }
    let text = match std::str::from_utf8(line) {
        Ok(text) => text,
        Err(error) => {
            let place = error.valid_up_to();
            return Line::Broken(format!(
                "not UTF-8: byte {} of the line is 0x{:02x}; save the file as UTF-8",
                place + 1,
                line[place]
            ));
        }
    };
    if text.trim().is_empty() {
        return Line::Blank;
    }
    // A list of the values alone would pass as well.
    if !text.trim_start().starts_with('{') {
        return Line::Broken("not a JSON object".to_string());
    }
    match serde_json::from_str(text) {
        Ok(fields) => Line::Row(fields),
        Err(error) => {
            let said = error.to_string();
            // The parser counts lines too, and this is its first.
            let said = said.split(" at line ").next().unwrap_or_default();
            Line::Broken(format!(
                "not a JSON object on one line: {said} (column {})",
                error.column()
            ))
        }
    }
}

/// Hashes what is read.
struct Digesting<R> {
    inner: R,
    hasher: blake3::Hasher,
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let num_bytes = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..num_bytes]);
        Ok(num_bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::dataset::fields::Field;

    fn written(content: &[u8]) -> (tempfile::TempDir, PlacedFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        fs::write(&path, content).unwrap();
        let file = PlacedFile::open(&path).unwrap();
        (dir, file)
    }

    fn said(line: Line) -> String {
        match line {
            Line::Blank => "blank".to_string(),
            Line::Row(fields) => match fields.prompt {
                Field::Text(text) => text.into_owned(),
                other => format!("{other:?}"),
            },
            Line::Broken(problem) => problem,
        }
    }

    fn lines(file: &PlacedFile) -> Vec<(u64, String)> {
        let mut lines = Vec::new();
        let digest = scan(file, |offset, line| {
            lines.push((offset, said(line)));
            Ok(())
        });
        let content = fs::read(file.path()).unwrap();
        assert_eq!(digest.unwrap(), blake3::hash(&content));
        lines
    }

    #[test]
    fn lines_come_with_their_offsets_and_can_be_read_again() {
        let content =
            b"\xef\xbb\xbf{\"prompt\":\"a\"}\n\n{\"prompt\":\"b\"}\r\n  \n{\"prompt\":\"c\"}";
        let (_dir, file) = written(content);
        let expected = [(0, "a"), (18, "blank"), (19, "b"), (35, "blank"), (38, "c")];
        let expected = expected.map(|(offset, text)| (offset, text.to_string()));
        assert_eq!(lines(&file), expected);
        for (number, (offset, text)) in expected.iter().enumerate() {
            assert_eq!(read(&file, (0, number as u64), said).unwrap(), *text);
            assert_eq!(read(&file, (*offset, 0), said).unwrap(), *text);
        }
    }

    #[test]
    fn a_broken_line_says_where_it_breaks() {
        let content = b"{\"prompt\":\"a\xff\"}\n{\"prompt\":}\n[]\n{\"prompt\":\"\\ud800\"}\n{\"prompt\":\"a\"} x\n{\"pro";
        let (_dir, file) = written(content);
        let found = lines(&file);
        for ((_, found), expected) in found.iter().zip([
            "not UTF-8: byte 13 of the line is 0xff",
            "expected value (column 11)",
            "not a JSON object",
            "unexpected end of hex escape (column 18)",
            "trailing characters (column 16)",
            "EOF while parsing a string",
        ]) {
            assert!(found.contains(expected), "{expected} in {found}");
        }
        assert_eq!(found.len(), 6);
    }

    #[test]
    fn a_line_too_long_is_passed_over_without_keeping_it() {
        let mut content = b"{\"prompt\":\"a\"}\n".to_vec();
        content.resize(15 + MAX_LINE_BYTES + 100, b'x');
        content.extend(b"\n{\"prompt\":\"b\"}\n");
        let (_dir, file) = written(&content);
        let found = lines(&file);
        assert_eq!(found.len(), 3);
        assert!(found[1].1.contains("more than 67108864 bytes"), "{found:?}");
        assert_eq!(found[2].1, "b");
        assert_eq!(found[2].0, 15 + MAX_LINE_BYTES as u64 + 101);
        assert_eq!(read(&file, (0, 2), said).unwrap(), "b");
    }

    #[test]
    fn an_empty_file_has_no_lines() {
        let (_dir, file) = written(b"");
        assert!(lines(&file).is_empty());
    }
}
