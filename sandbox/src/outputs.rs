//! Reads of files that a hostile program wrote. Nothing is followed out of the folder, nothing
//! blocks, and only plain files with one name are read, up to a size.

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;

/// Why a file was not read. All but `Missing` are the marks of an attempt to deceive, or of a
/// program that wrote too much.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such file.
    #[error("missing")]
    Missing,
    /// The path passes a symbolic link or leaves the folder.
    #[error("a link or a path that leaves the working folder")]
    Escapes,
    /// A folder, FIFO, socket or device.
    #[error("not a plain file")]
    NotPlain,
    /// The file has a second name.
    #[error("hard-linked")]
    HardLinked,
    /// More bytes than allowed.
    #[error("larger than {max_bytes} bytes")]
    TooLarge {
        /// The bound.
        max_bytes: usize,
    },
    /// Any other system error.
    #[error("{0}")]
    Other(String),
}

/// Reads one file below `dir`.
///
/// # Errors
/// [`Refusal`] says why it was not read.
pub fn read_below(dir: impl AsFd, path: &str, max_bytes: usize) -> Result<Vec<u8>, Refusal> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let opened = loop {
        match openat2(&dir, path, flags, Mode::empty(), resolve) {
            // A rename raced with the walk.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => break other,
        }
    };
    let mut file: File = opened
        .map_err(|errno| match errno {
            Errno::NOENT | Errno::NOTDIR => Refusal::Missing,
            Errno::LOOP | Errno::XDEV => Refusal::Escapes,
            Errno::NXIO | Errno::NODEV => Refusal::NotPlain,
            other => Refusal::Other(other.to_string()),
        })?
        .into();
    let stat = fstat(&file).map_err(|errno| Refusal::Other(errno.to_string()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Refusal::NotPlain);
    }
    if stat.st_nlink != 1 {
        return Err(Refusal::HardLinked);
    }
    let too_large = Refusal::TooLarge { max_bytes };
    if u64::try_from(stat.st_size).map_or(true, |size| size > max_bytes as u64) {
        return Err(too_large);
    }
    let mut bytes = Vec::new();
    let limit = max_bytes as u64 + 1;
    file.by_ref()
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(|error| Refusal::Other(error.to_string()))?;
    if bytes.len() > max_bytes {
        return Err(too_large);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_files_below_the_folder_are_read() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("job");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(parent.path().join("secret"), "secret").unwrap();
        std::fs::write(dir.join("plain"), "ok").unwrap();
        std::fs::write(dir.join("second"), "x").unwrap();
        std::fs::hard_link(dir.join("second"), dir.join("third")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.join("link")).unwrap();
        std::os::unix::fs::symlink("..", dir.join("up")).unwrap();
        File::create(dir.join("sparse"))
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.join("fifo"), Mode::RUSR).unwrap();
        let fd = File::open(&dir).unwrap();
        let read = |path: &str| read_below(&fd, path, 1000);
        assert_eq!(read("plain"), Ok(b"ok".to_vec()));
        assert_eq!(read("none"), Err(Refusal::Missing));
        for path in ["link", "up/secret", "../secret", "/etc/passwd"] {
            assert_eq!(read(path), Err(Refusal::Escapes), "{path}");
        }
        assert_eq!(read("second"), Err(Refusal::HardLinked));
        assert_eq!(read("sparse"), Err(Refusal::TooLarge { max_bytes: 1000 }));
        assert_eq!(read("fifo"), Err(Refusal::NotPlain));
        assert_eq!(read("."), Err(Refusal::NotPlain));
    }
}
