//! A timeline of what was computed: libtorch's operations, the GPU's kernels and copies, and ranges named by us.
//!
//! Kineto, the profiler inside libtorch, records every thread and writes a Chrome trace, which
//! <https://ui.perfetto.dev> and `chrome://tracing` open (format: "Trace Event Format" of the Chromium
//! project). A recording costs some microseconds an operation, which a CPU-bound program feels.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, io, ptr};

use tch::Device;

use crate::error::KernelError;
use crate::ffi;
use crate::runtime::synchronize;

/// A recording could not be made or written.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// libtorch refused.
    #[error(transparent)]
    Libtorch(#[from] KernelError),
    /// libtorch records once at a time.
    #[error("a profile is being recorded already")]
    AtWork,
    /// The file could not be written.
    #[error("can't write the profile {path}")]
    Io {
        /// File.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// A recording at work. It is dropped unwritten unless [`Profiler::save`] ends it.
#[derive(Debug)]
pub struct Profiler {
    device: Device,
    is_stopped: bool,
}

/// Whether a [`Profiler`] of this process is at work.
static IS_RECORDING: AtomicBool = AtomicBool::new(false);

impl Profiler {
    /// Starts recording all threads, and `device` where it is a GPU. One recording at a time in a process.
    ///
    /// # Errors
    /// [`ProfileError::AtWork`] when there is one, [`ProfileError::Libtorch`] when libtorch refuses.
    pub fn start(device: Device) -> Result<Profiler, ProfileError> {
        if IS_RECORDING.swap(true, Ordering::SeqCst) {
            return Err(ProfileError::AtWork);
        }
        // What a GPU still does falls on the right side of the recording's ends.
        synchronize(device);
        // SAFETY: no pointers; no other recording is at work.
        let code = unsafe { ffi::baleen_profiler_start(c_int::from(device.is_cuda())) };
        let started = ffi::check("Profiler::start", code);
        if started.is_err() {
            IS_RECORDING.store(false, Ordering::SeqCst);
        }
        started?;
        let is_stopped = false;
        Ok(Profiler { device, is_stopped })
    }

    /// Ends the recording and writes it to `path`, replacing what is there.
    ///
    /// # Errors
    /// [`ProfileError::Io`] when the file can't be made or the disk is full.
    pub fn save(mut self, path: &Path) -> Result<(), ProfileError> {
        let failed = |source| ProfileError::Io {
            path: path.to_path_buf(),
            source,
        };
        check_file(path)?;
        // libtorch tells nobody when it can't write: then the file stays empty.
        fs::File::create(path).map_err(failed)?;
        let name = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|error| failed(error.into()))?;
        self.stop(name.as_ptr())?;
        match is_whole(path).map_err(failed)? {
            true => Ok(()),
            false => {
                let reason = "the file is cut short; the disk may be full";
                Err(failed(io::Error::other(reason)))
            }
        }
    }
}

impl Profiler {
    /// Ends the recording, once; writes it to `path` unless that is null.
    fn stop(&mut self, path: *const c_char) -> Result<(), KernelError> {
        if std::mem::replace(&mut self.is_stopped, true) {
            return Ok(());
        }
        synchronize(self.device);
        // SAFETY: null, or a zero-terminated string that lives through the call.
        let code = unsafe { ffi::baleen_profiler_stop(path) };
        IS_RECORDING.store(false, Ordering::SeqCst);
        ffi::check("Profiler::stop", code)
    }
}

impl Drop for Profiler {
    fn drop(&mut self) {
        if let Err(error) = self.stop(ptr::null()) {
            tracing::debug!("{error}");
        }
    }
}

/// Makes the file `path`, if need be, before there is something to write to it: what it holds stays until
/// then.
///
/// # Errors
/// A file that can't be written, or something that is no file: libtorch puts a file of its own
/// in its place.
pub fn check_file(path: &Path) -> Result<(), ProfileError> {
    let mut options = fs::OpenOptions::new();
    let opened = options.create(true).write(true).truncate(false).open(path);
    let checked = opened.and_then(|file| match file.metadata()?.is_file() {
        true => Ok(()),
        false => Err(io::Error::other("it is there and not a regular file")),
    });
    checked.map_err(|source| ProfileError::Io {
        path: path.to_path_buf(),
        source,
    })
}

/// Whether the file ends as a JSON object does.
fn is_whole(path: &Path) -> io::Result<bool> {
    use std::io::{Read, Seek, SeekFrom};
    const LOOKED_AT: u64 = 16;
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOOKED_AT)))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    Ok(end.trim_ascii_end().last() == Some(&b'}'))
}

/// A named stretch of time on the timeline, from [`range`] until it is dropped.
#[derive(Debug)]
#[must_use = "the range ends when this is dropped"]
pub struct Range {
    pointer: *mut c_void,
}

/// Begins a range of the calling thread; next to nothing where nothing is recorded. Ranges nest: one begun
/// inside another is dropped before it.
pub fn range(name: &str) -> Range {
    let pointer = match CString::new(name) {
        // SAFETY: a zero-terminated string that lives through the call, which copies it.
        Ok(name) => unsafe { ffi::baleen_range_begin(name.as_ptr()) },
        Err(_) => ptr::null_mut(),
    };
    Range { pointer }
}

impl Drop for Range {
    fn drop(&mut self) {
        if !self.pointer.is_null() {
            // SAFETY: made by `baleen_range_begin`, ended once, and on the thread that began it: the
            // pointer keeps `Range` from being sent to another.
            unsafe { ffi::baleen_range_end(self.pointer) };
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;

    /// One recording at a time in a process: what needs one shares it.
    #[test]
    fn operations_of_all_threads_and_ranges_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("profile.json");
        let unrecorded = range("before");
        let profiler = Profiler::start(Device::Cpu).unwrap();
        let second = Profiler::start(Device::Cpu);
        assert!(matches!(second, Err(ProfileError::AtWork)), "{second:?}");
        drop(unrecorded);
        let square = |name: &str| {
            let _range = range(name);
            let x = Tensor::ones([4, 4], (Kind::Float, Device::Cpu));
            x.matmul(&x).double_value(&[0, 0])
        };
        square("here \"quoted\"");
        std::thread::scope(|scope| {
            scope.spawn(|| square("elsewhere"));
        });
        profiler.save(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        for name in ["\"traceEvents\"", "aten::matmul", "here", "elsewhere"] {
            assert!(text.contains(name), "{name}");
        }
        assert!(!text.contains("\"before\""));

        let absent = dir.path().join("absent").join("profile.json");
        let profiler = Profiler::start(Device::Cpu).unwrap();
        let error = profiler.save(&absent).unwrap_err();
        assert!(matches!(error, ProfileError::Io { .. }), "{error}");
        drop(Profiler::start(Device::Cpu).unwrap());
        Profiler::start(Device::Cpu).unwrap().save(&path).unwrap();
    }

    #[test]
    fn what_is_no_file_is_refused_and_a_file_keeps_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("profile.json");
        fs::write(&file, "older").unwrap();
        check_file(&file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "older");
        for path in [Path::new("/dev/null"), dir.path()] {
            let refused = check_file(path);
            assert!(matches!(refused, Err(ProfileError::Io { .. })), "{path:?}");
        }
    }

    #[test]
    fn a_file_cut_short_is_not_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("profile.json");
        for (text, whole) in [("", false), ("{\"a\": [", false), ("{\"a\": []\n}\n", true)] {
            fs::write(&path, text).unwrap();
            assert_eq!(is_whole(&path).unwrap(), whole, "{text}");
        }
    }
}
