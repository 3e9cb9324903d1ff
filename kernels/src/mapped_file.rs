//! A file as a read-only slice of bytes, without reading it.
//!
//! Weights of many gigabytes are mapped: pages come from disk when touched, and a tensor is copied
//! once, from the page cache to where it lives. Formats are the caller's business.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

/// A file mapped into memory; dereferences to its bytes.
#[derive(Debug)]
pub struct MappedFile(Mmap);

impl MappedFile {
    /// Maps the whole file.
    ///
    /// While it is mapped, nobody may write to the file or shorten it: the bytes would change under
    /// the reader, or reading would end the process with SIGBUS. Replacing it by renaming another
    /// file over it, the way checkpoints are written, is fine: the mapping keeps the old one.
    ///
    /// # Errors
    /// When the file can't be opened or mapped; the message names it.
    pub fn open(path: &Path) -> io::Result<MappedFile> {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let file = File::open(path).map_err(named)?;
        // SAFETY: the slice is sound as long as the file's content stays as it is, which the type
        // system can't see. Model files are written under another name and renamed when complete,
        // never changed in place.
        unsafe { Mmap::map(&file) }.map(MappedFile).map_err(named)
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn scratch(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("mapped-file-{}-{name}", std::process::id()))
    }

    #[test]
    fn bytes_are_those_of_the_file_even_after_it_is_replaced() {
        let (path, other) = (scratch("old"), scratch("new"));
        fs::write(&path, b"weights").unwrap();
        let mapped = MappedFile::open(&path).unwrap();
        assert_eq!(&*mapped, b"weights");
        fs::write(&other, b"other").unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!(&mapped[..3], b"wei");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn empty_file_is_an_empty_slice() {
        let path = scratch("empty");
        fs::write(&path, b"").unwrap();
        assert!(MappedFile::open(&path).unwrap().is_empty());
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn missing_file_is_named_in_the_error() {
        let error = MappedFile::open(Path::new("/no/such/file")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("/no/such/file"), "{error}");
    }
}
