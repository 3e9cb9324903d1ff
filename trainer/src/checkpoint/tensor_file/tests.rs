//! The layout byte for byte, and files that are not in it.

use super::*;

fn numbers(tensor: &Tensor) -> Vec<f32> {
    Vec::<f32>::try_from(tensor.detach().view([-1])).unwrap()
}

#[test]
fn bytes_are_those_of_the_safetensors_layout() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = [
        ("a".to_string(), Tensor::from_slice(&[1.0_f32, -2.0])),
        ("n".to_string(), Tensor::from_slice(&[7_i64])),
    ];
    let record = create_tensor_file(folder.path(), "t.safetensors", &tensors).unwrap();
    let bytes = std::fs::read(folder.path().join("t.safetensors")).unwrap();
    let header = concat!(
        r#"{"__metadata__":{"format":"pt"},"#,
        r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"#,
        r#""n":{"dtype":"I64","shape":[1],"data_offsets":[8,16]}}"#,
    );
    let header_len = header.len().next_multiple_of(8);
    assert_eq!(bytes[..8], (header_len as u64).to_le_bytes());
    let stored = std::str::from_utf8(&bytes[8..8 + header_len]).unwrap();
    assert_eq!(stored.trim_end(), header);
    let data = &bytes[8 + header_len..];
    assert_eq!(data[..8], [0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0]);
    assert_eq!(data[8..], [7, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(record.bytes, bytes.len() as u64);
    assert_eq!(record.blake3, blake3::hash(&bytes).to_hex().to_string());
}

#[test]
fn tensor_larger_than_a_chunk_comes_back_whole() {
    let folder = tempfile::tempdir().unwrap();
    let rows = (CHUNK_BYTES / 4 / 1000) as i64 + 100;
    let big = Tensor::arange(rows * 1000, (Kind::Float, Device::Cpu)).view([rows, 1000]);
    // A transposed view is stored in its logical order.
    let tensors = [
        ("big".to_string(), big.shallow_clone()),
        (
            "turned".to_string(),
            Tensor::from_slice(&[1_f32, 2., 3., 4.]).view([2, 2]).tr(),
        ),
        (
            "empty".to_string(),
            Tensor::zeros([0, 3], (Kind::Float, Device::Cpu)),
        ),
    ];
    create_tensor_file(folder.path(), "t", &tensors).unwrap();
    let open = || TensorFile::open(&folder.path().join("t")).unwrap();
    let read = open().read_all().unwrap();
    assert!(read[0].1.equal(&big));
    assert_eq!(numbers(&read[1].1), [1.0, 3.0, 2.0, 4.0]);
    assert_eq!(read[2].1.size(), [0, 3]);

    let target = Tensor::zeros([rows, 1000], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let others = [&read[1].1, &read[2].1];
    let targets = [
        ("empty", others[1]),
        ("big", &target),
        ("turned", others[0]),
    ];
    open().copy_into(&targets).unwrap();
    assert!(target.equal(&big) && target.requires_grad());
}

#[test]
fn names_shapes_and_types_are_checked_before_anything_is_copied() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = [
        ("a".to_string(), Tensor::from_slice(&[1.0_f32])),
        ("b".to_string(), Tensor::from_slice(&[2.0_f32, 3.0])),
    ];
    create_tensor_file(folder.path(), "t", &tensors).unwrap();
    let a = Tensor::from_slice(&[9.0_f32]);
    let refused = |targets: &[(&str, &Tensor)]| {
        let file = TensorFile::open(&folder.path().join("t")).unwrap();
        let error = file.copy_into(targets).unwrap_err().to_string();
        assert_eq!(numbers(&a), [9.0]);
        error
    };
    let (short, wide) = (
        Tensor::from_slice(&[0.0_f32]),
        Tensor::from_slice(&[0.0, 0.0]),
    );
    let shape = refused(&[("a", &a), ("b", &short)]);
    assert!(
        shape.contains("'b': Float [2] in the checkpoint, Float [1]"),
        "{shape}"
    );
    let kind = refused(&[("a", &a), ("b", &wide)]);
    assert!(kind.contains("Double [2] in the model"), "{kind}");
    let missing = refused(&[("a", &a), ("c", &short)]);
    assert!(missing.contains("'c': the model has it"), "{missing}");
    let extra = refused(&[("a", &a)]);
    assert!(extra.contains("'b': the checkpoint has it"), "{extra}");
}

#[test]
fn full_disk_is_an_error() {
    struct Disk(usize);
    impl Write for Disk {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            self.0 = self
                .0
                .checked_sub(buffer.len())
                .ok_or(io::ErrorKind::StorageFull)?;
            Ok(buffer.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let tensors = [("a".to_string(), Tensor::from_slice(&[1.0_f32; 100]))];
    let error = write_tensors(&mut Disk(200), &tensors).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    write_tensors(&mut Disk(1000), &tensors).unwrap();
}

#[test]
fn malformed_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t");
    let refused = |header: &str, claimed: u64, data: &[u8]| {
        let mut bytes = claimed.to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        std::fs::write(&path, bytes).unwrap();
        TensorFile::open(&path)
            .err()
            .expect("a malformed file")
            .to_string()
    };
    assert!(refused("{}", 100, &[]).contains("longer than the file"));
    assert!(refused("{]", 2, &[]).contains("not JSON"));
    let cut = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    assert!(refused(cut, cut.len() as u64, &[0; 7]).contains("no room"));
    let bent = r#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#;
    assert!(refused(bent, bent.len() as u64, &[0; 8]).contains("no room"));
    let half = r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}"#;
    assert!(refused(half, half.len() as u64, &[0; 4]).contains("type F16"));
}
