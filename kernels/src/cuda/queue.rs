//! A stream with the kernels and products that are put on it.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::ptr;

use cudarc::cublas::{result as cublas, sys as blas};
use cudarc::driver::sys;
use tch::{Device, Kind, Tensor};

use super::compile::{Constant, Source};
use super::context::{Cuda, check};
use super::graph::Graph;
use super::launch::{Argument, Functions, Grid, Kernel, Place};
use super::pinned::{Number, Pinned};
use crate::error::KernelError;

/// Scratch memory of cuBLAS, which may allocate none while work is recorded.
pub const WORKSPACE_BYTES: i64 = 64 << 20;

/// A stream of its own, beside the default stream on which libtorch works.
///
/// Order between the two is the caller's: [`Queue::follow_default_stream`] makes later work here wait for what
/// libtorch has been told to do, [`Queue::wait`] makes the host, and with it later work of libtorch, wait for
/// this queue.
#[derive(Debug)]
pub struct Queue {
    cuda: Cuda,
    stream: sys::CUstream,
    event: sys::CUevent,
    blas: blas::cublasHandle_t,
    _workspace: Tensor,
    functions: Functions,
    /// Tensors that work being recorded touches.
    recorded: RefCell<Option<Vec<Tensor>>>,
    /// Whether what was put here last is a kernel that lets the next one start early. After anything else (a product of
    /// cuBLAS, a copy, an event) a kernel starts when that is done.
    ends_in_overlap: Cell<bool>,
}

// SAFETY: the driver's objects may be used from any thread, one at a time: Queue is not Sync.
unsafe impl Send for Queue {}

impl Queue {
    /// A queue on the card behind `device`.
    ///
    /// # Errors
    /// No such card, a missing library, or a refusal of the driver or cuBLAS.
    pub fn new(device: Device) -> Result<Queue, KernelError> {
        let cuda = Cuda::new(device)?;
        let workspace = Tensor::zeros([WORKSPACE_BYTES], (Kind::Uint8, device));
        let (mut stream, mut event) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the card's context is the thread's; out pointers live through the calls; the workspace lives as
        // long as the handle.
        unsafe {
            let non_blocking = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            check(
                "cuStreamCreate",
                sys::cuStreamCreate(&mut stream, non_blocking),
            )?;
            let no_timing = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
            check("cuEventCreate", sys::cuEventCreate(&mut event, no_timing))?;
            let blas =
                cublas::create_handle().map_err(|error| blas_failed("cublasCreate", error))?;
            cublas::set_stream(blas, stream.cast())
                .map_err(|error| blas_failed("cublasSetStream", error))?;
            blas::cublasSetWorkspace_v2(blas, workspace.data_ptr(), WORKSPACE_BYTES as usize)
                .result()
                .map_err(|error| blas_failed("cublasSetWorkspace", error))?;
            Ok(Queue {
                cuda,
                stream,
                event,
                blas,
                _workspace: workspace,
                functions: Functions::default(),
                recorded: RefCell::default(),
                ends_in_overlap: Cell::new(false),
            })
        }
    }

    /// The card.
    pub fn cuda(&self) -> &Cuda {
        &self.cuda
    }

    /// The stream, for something other than a kernel.
    pub(super) fn stream(&self) -> sys::CUstream {
        self.ends_in_overlap.set(false);
        self.stream
    }

    /// Makes what follows here wait for all that libtorch's default stream has been given.
    ///
    /// # Errors
    /// The driver refuses, here and below.
    pub fn follow_default_stream(&self) -> Result<(), KernelError> {
        self.cuda.enter()?;
        // SAFETY: the null stream is libtorch's default stream; event and stream are alive.
        unsafe {
            check(
                "cuEventRecord",
                sys::cuEventRecord(self.event, ptr::null_mut()),
            )?;
            check(
                "cuStreamWaitEvent",
                sys::cuStreamWaitEvent(self.stream(), self.event, 0),
            )
        }
    }

    /// Waits until all that was put here is done.
    ///
    /// # Errors
    /// Work failed.
    pub fn wait(&self) -> Result<(), KernelError> {
        self.cuda.enter()?;
        // SAFETY: the stream is alive.
        check("cuStreamSynchronize", unsafe {
            sys::cuStreamSynchronize(self.stream)
        })
    }

    /// Records what `work` puts on the queue, without running it.
    ///
    /// # Errors
    /// Those of `work`, and refusals of the driver.
    pub fn record(
        &self,
        work: impl FnOnce() -> Result<(), KernelError>,
    ) -> Result<Graph, KernelError> {
        self.cuda.enter()?;
        // Other threads may use libtorch meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive and nothing is being recorded (`recorded` is taken below).
        let begun = unsafe { sys::cuStreamBeginCapture_v2(self.stream(), mode) };
        check("cuStreamBeginCapture", begun)?;
        *self.recorded.borrow_mut() = Some(Vec::new());
        let done = work();
        let tensors = self.recorded.borrow_mut().take().unwrap_or_default();
        let mut graph = ptr::null_mut();
        // SAFETY: capture began above; after a failure the driver hands out null.
        let ended = unsafe { sys::cuStreamEndCapture(self.stream(), &mut graph) };
        done?;
        check("cuStreamEndCapture", ended)?;
        // SAFETY: just captured; `tensors` are all that was touched.
        unsafe { Graph::new(graph, tensors) }
    }

    /// Compiles `kernel` of `source` now, so that it is there when work is recorded.
    ///
    /// # Errors
    /// It does not compile.
    pub(crate) fn prepare(
        &self,
        source: &Source,
        constants: &[Constant],
        kernel: &str,
    ) -> Result<(), KernelError> {
        self.functions
            .prepare(&self.cuda, (source, constants, kernel))
    }

    /// Puts a kernel on the queue, with `block` threads a block.
    ///
    /// # Safety
    /// The arguments are what the kernel takes, and addresses are those of tensors given to
    /// [`Queue::address`] that are as large as the kernel expects.
    ///
    /// # Errors
    /// It does not compile or can't be launched.
    pub(crate) unsafe fn launch(
        &self,
        kernel: Kernel,
        grid: impl Into<Grid>,
        block: u32,
        arguments: &[Argument],
    ) -> Result<(), KernelError> {
        let (cuda, (source, ..)) = (&self.cuda, kernel);
        let place = Place {
            stream: self.stream,
            may_overlap: source.overlaps && self.ends_in_overlap.get(),
        };
        // SAFETY: the stream is alive; what overlaps waits (a test reads the sources); the rest is the caller's.
        unsafe {
            self.functions
                .launch(cuda, place, kernel, grid.into(), block, arguments)?;
        }
        self.ends_in_overlap.set(source.overlaps);
        Ok(())
    }

    /// The address of a tensor of `kind` on this card; what is being recorded keeps the tensor.
    ///
    /// # Errors
    /// Another type, device, or gaps between its numbers.
    pub(crate) fn address(&self, tensor: &Tensor, kind: Kind) -> Result<Argument, KernelError> {
        if !tensor.is_contiguous() {
            return Err(mismatch(format!("a tensor {:?} with gaps", tensor.size())));
        }
        self.strided_address(tensor, kind)
    }

    /// The same of a tensor whose strides the kernel is told.
    pub(crate) fn strided_address(
        &self,
        tensor: &Tensor,
        kind: Kind,
    ) -> Result<Argument, KernelError> {
        let (found, device) = (tensor.kind(), tensor.device());
        if found != kind || device != self.cuda.device() {
            let wanted = self.cuda.device();
            return Err(mismatch(format!(
                "{found:?} on {device:?} in place of {kind:?} on {wanted:?}"
            )));
        }
        if let Some(tensors) = self.recorded.borrow_mut().as_mut() {
            tensors.push(tensor.shallow_clone());
        }
        Ok(Argument::Pointer(tensor.data_ptr() as u64))
    }

    /// out = x weight^T in bf16, summed in f32: `x` `[B, in]`, `weight` `[out, in]`, `out` `[B, out]`.
    ///
    /// # Errors
    /// Sizes that don't fit, or a refusal of cuBLAS.
    pub fn product(&self, x: &Tensor, weight: &Tensor, out: &Tensor) -> Result<(), KernelError> {
        self.products(&x.unsqueeze(0), &weight.unsqueeze(0), &out.unsqueeze(0))
    }

    /// The same for each of E weights: `x` `[E, B, in]`, or `[1, B, in]` for all; `weights` `[E, out, in]`, `out` `[E, B, out]`.
    ///
    /// # Errors
    /// As [`Queue::product`].
    pub fn products(&self, x: &Tensor, weights: &Tensor, out: &Tensor) -> Result<(), KernelError> {
        let sizes = (x.size3().ok(), weights.size3().ok(), out.size3().ok());
        let (Some((xs, batch, inner)), Some((count, columns, weight_inner)), Some(result)) = sizes
        else {
            return Err(mismatch("products take three dimensions".to_string()));
        };
        if inner != weight_inner || result != (count, batch, columns) || (xs != count && xs != 1) {
            return Err(mismatch(format!(
                "{:?} x {:?} to {result:?}",
                x.size(),
                weights.size()
            )));
        }
        let [x, weights, out] =
            [x, weights, out].map(|tensor| self.address(tensor, Kind::BFloat16));
        let (Argument::Pointer(x), Argument::Pointer(weights), Argument::Pointer(out)) =
            (x?, weights?, out?)
        else {
            unreachable!("addresses are pointers")
        };
        let int =
            |size: i64| i32::try_from(size).map_err(|_| mismatch(format!("a side of {size}")));
        let (columns_int, batch_int, inner_int) = (int(columns)?, int(batch)?, int(inner)?);
        let (one, zero) = (1.0_f32, 0.0_f32);
        self.ends_in_overlap.set(false);
        let bf16 = blas::cudaDataType_t::CUDA_R_16BF;
        // cuBLAS counts columns first: out^T [columns, batch] = weight [columns, inner] x^T.
        // SAFETY: sizes were compared; addresses are those of contiguous tensors on this card; the factors live
        // through the call.
        unsafe {
            cublas::gemm_strided_batched_ex(
                self.blas,
                blas::cublasOperation_t::CUBLAS_OP_T,
                blas::cublasOperation_t::CUBLAS_OP_N,
                columns_int,
                batch_int,
                inner_int,
                ptr::from_ref(&one).cast(),
                weights as *const c_void,
                bf16,
                inner_int,
                columns * inner,
                x as *const c_void,
                bf16,
                inner_int,
                if xs == 1 { 0 } else { batch * inner },
                ptr::from_ref(&zero).cast(),
                out as *mut c_void,
                bf16,
                columns_int,
                batch * columns,
                int(count)?,
                blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(|error| blas_failed("cublasGemmStridedBatchedEx", error))
    }

    /// Copies `from` to `to`, as many bytes as `from` has.
    ///
    /// # Safety
    /// `from` outlives the copy, and the [`Graph`] if it is recorded, and is not written before the copy is
    /// done.
    ///
    /// # Errors
    /// `to` is smaller, or a refusal of the driver.
    pub(crate) unsafe fn upload<T: Number>(
        &self,
        from: &Pinned<T>,
        to: &Tensor,
    ) -> Result<(), KernelError> {
        let bytes = self.copied_bytes(from, to)?;
        let Argument::Pointer(address) = self.address(to, to.kind())? else {
            unreachable!("addresses are pointers")
        };
        // SAFETY: both sides are as large; the rest is the caller's.
        check("cuMemcpyHtoDAsync", unsafe {
            sys::cuMemcpyHtoDAsync_v2(address, from.address().cast(), bytes, self.stream())
        })
    }

    /// Copies `from` to `to`, as many bytes as `to` has.
    ///
    /// # Safety
    /// `to` outlives the copy, and the [`Graph`] if it is recorded, and is not read before the copy is done.
    ///
    /// # Errors
    /// `from` is smaller, or a refusal of the driver.
    pub(crate) unsafe fn download<T: Number>(
        &self,
        from: &Tensor,
        to: &Pinned<T>,
    ) -> Result<(), KernelError> {
        let bytes = self.copied_bytes(to, from)?;
        let Argument::Pointer(address) = self.address(from, from.kind())? else {
            unreachable!("addresses are pointers")
        };
        // SAFETY: both sides are as large; the rest is the caller's.
        check("cuMemcpyDtoHAsync", unsafe {
            sys::cuMemcpyDtoHAsync_v2(to.address().cast(), address, bytes, self.stream())
        })
    }

    fn copied_bytes<T: Number>(
        &self,
        host: &Pinned<T>,
        device: &Tensor,
    ) -> Result<usize, KernelError> {
        let bytes = host.len() * size_of::<T>();
        match device.numel() * device.kind().elt_size_in_bytes() >= bytes {
            true => Ok(bytes),
            false => Err(mismatch(format!(
                "{bytes} bytes for a tensor {:?}",
                device.size()
            ))),
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once, after what they do is over; failures leave nothing to do.
        unsafe {
            if self.cuda.enter().is_ok() {
                sys::cuStreamSynchronize(self.stream);
                let _ = cublas::destroy_handle(self.blas);
                sys::cuEventDestroy_v2(self.event);
                sys::cuStreamDestroy_v2(self.stream);
            }
        }
    }
}

fn mismatch(message: String) -> KernelError {
    KernelError::Mismatch {
        operation: "a CUDA kernel",
        message,
    }
}

fn blas_failed(operation: &'static str, error: cublas::CublasError) -> KernelError {
    KernelError::Cuda {
        operation,
        message: format!("{:?}", error.0),
    }
}
