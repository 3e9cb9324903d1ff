//! Functions of `kernels/cuda/`, loaded into the card's context once each, and their launch on a stream.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ptr;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::sys;

use super::compile::{Constant, Source, cubin};
use super::context::{Cuda, check};
use crate::error::KernelError;

/// Dynamic shared memory that every function may use; more has to be asked for.
const USUAL_SHARED_BYTES: u32 = 48 << 10;

/// A file of `kernels/cuda/`, the constants it is compiled with, and a function of it.
pub(crate) type Kernel<'a> = (&'a Source, &'a [Constant], &'a str);

/// Arguments of a kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Argument {
    /// A device address; 0 for none.
    Pointer(u64),
    Int(i32),
    Long(i64),
    Float(f32),
    Double(f64),
}

/// How many blocks run, in x, y and z, and the dynamic shared memory of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    blocks: [u32; 3],
    shared_bytes: u32,
}

impl Grid {
    /// With `bytes` of dynamic shared memory a block: at most 163 KB on an A100, 227 KB on an H100.
    pub(crate) fn with_shared(self, bytes: u32) -> Grid {
        Grid {
            shared_bytes: bytes,
            ..self
        }
    }
}

impl From<[u32; 3]> for Grid {
    fn from(blocks: [u32; 3]) -> Grid {
        Grid {
            blocks,
            shared_bytes: 0,
        }
    }
}

impl From<[u32; 2]> for Grid {
    fn from([x, y]: [u32; 2]) -> Grid {
        [x, y, 1].into()
    }
}

/// Where a kernel goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Null: libtorch's default stream.
    pub(super) stream: sys::CUstream,
    /// Whether the kernel may start before the one in front of it is done.
    pub(super) may_overlap: bool,
}

/// The functions loaded so far, which any thread may launch.
#[derive(Debug, Default)]
pub(super) struct Functions {
    loaded: Mutex<HashMap<String, Function>>,
}

#[derive(Clone, Copy, Debug)]
struct Function {
    handle: sys::CUfunction,
    /// Dynamic shared memory that it may use.
    shared_bytes: u32,
}

// SAFETY: a handle that the driver looks up; it guards what is behind it itself, and modules are never unloaded.
unsafe impl Send for Function {}

impl Functions {
    /// Compiles and loads `kernel` where that was not done before.
    ///
    /// # Errors
    /// It does not compile, or a refusal of the driver.
    pub(super) fn prepare(&self, cuda: &Cuda, kernel: Kernel) -> Result<(), KernelError> {
        self.get(cuda, kernel, 0).map(|_| ())
    }

    fn get(
        &self,
        cuda: &Cuda,
        (source, constants, kernel): Kernel,
        shared_bytes: u32,
    ) -> Result<sys::CUfunction, KernelError> {
        let name = format!("{} {kernel} {constants:?}", source.name);
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let known = loaded.get(&name).copied();
        if let Some(function) = known.filter(|known| shared_bytes <= known.shared_bytes) {
            return Ok(function.handle);
        }
        cuda.enter()?;
        let handle = match known {
            Some(function) => function.handle,
            None => load(&cubin(source, constants, &cuda.arch())?, kernel)?,
        };
        if shared_bytes > USUAL_SHARED_BYTES {
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function was loaded into this context.
            let allowed =
                unsafe { sys::cuFuncSetAttribute(handle, attribute, shared_bytes as i32) };
            check("cuFuncSetAttribute", allowed)?;
        }
        let function = Function {
            handle,
            shared_bytes: shared_bytes.max(USUAL_SHARED_BYTES),
        };
        loaded.insert(name, function);
        Ok(handle)
    }

    /// Puts a kernel on the stream of `place`, with `block` threads a block.
    ///
    /// # Safety
    /// The stream is alive, the kernel waits itself where it may overlap (see `overlap.cuh`), and the arguments are what the
    /// kernel takes: addresses are those of memory of this card that is as large as the kernel expects when it runs.
    ///
    /// # Errors
    /// It does not compile or can't be launched.
    pub(super) unsafe fn launch(
        &self,
        cuda: &Cuda,
        place: Place,
        kernel: Kernel,
        grid: Grid,
        block: u32,
        arguments: &[Argument],
    ) -> Result<(), KernelError> {
        cuda.enter()?;
        let function = self.get(cuda, kernel, grid.shared_bytes)?;
        let mut addresses: Vec<*mut c_void> = arguments
            .iter()
            .map(|argument| match argument {
                Argument::Pointer(value) => ptr::from_ref(value).cast_mut().cast(),
                Argument::Int(value) => ptr::from_ref(value).cast_mut().cast(),
                Argument::Long(value) => ptr::from_ref(value).cast_mut().cast(),
                Argument::Float(value) => ptr::from_ref(value).cast_mut().cast(),
                Argument::Double(value) => ptr::from_ref(value).cast_mut().cast(),
            })
            .collect();
        let [x, y, z] = grid.blocks;
        let mut overlap = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                programmaticStreamSerializationAllowed: 1,
            },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared_bytes,
            hStream: place.stream,
            attrs: &raw mut overlap,
            numAttrs: u32::from(place.may_overlap && cuda.overlaps_kernels()),
        };
        // SAFETY: the driver copies configuration and arguments before it returns; the rest is the caller's.
        check("cuLaunchKernelEx", unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                function,
                addresses.as_mut_ptr(),
                ptr::null_mut(),
            )
        })
    }
}

/// The function `kernel` of the machine code `code`, in the calling thread's context.
fn load(code: &[u8], kernel: &str) -> Result<sys::CUfunction, KernelError> {
    let symbol = CString::new(kernel).expect("kernels' names hold no zero byte");
    let (mut module, mut function) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: the driver copies the code; the module is never unloaded; out pointers live through the calls.
    unsafe {
        check(
            "cuModuleLoadData",
            sys::cuModuleLoadData(&mut module, code.as_ptr().cast()),
        )?;
        let found = sys::cuModuleGetFunction(&mut function, module, symbol.as_ptr());
        check("cuModuleGetFunction", found)?;
    }
    Ok(function)
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;
    use crate::cuda::DefaultStream;
    use crate::runtime;

    /// out[z, y, x] = what a thread of the block left at the far end of 100 KB of shared memory.
    const PROBE: Source = Source {
        name: "probe.cu",
        text: r#"
            extern "C" __global__ void probe(int* out) {
                extern __shared__ int shared[];
                const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
                if (threadIdx.x == 31) shared[25599] = block;
                __syncthreads();
                if (threadIdx.x == 0) out[block] = shared[25599];
            }"#,
        overlaps: false,
    };

    #[test]
    fn a_kernel_runs_on_a_grid_of_three_dimensions_with_much_shared_memory() {
        let device = runtime::start(1).device;
        let Some(stream) = DefaultStream::of(device) else {
            eprintln!("SKIPPED: no GPU with a run-time compiler");
            return;
        };
        let out = Tensor::full([4, 3, 2], -1, (Kind::Int, device));
        let arguments = [Argument::Pointer(out.data_ptr() as u64)];
        let grid = Grid::from([2, 3, 4]).with_shared(102_400);
        // SAFETY: 24 blocks write one number each.
        unsafe { stream.launch((&PROBE, &[], "probe"), grid, 32, &arguments) }.unwrap();
        let found = Vec::<i32>::try_from(out.flatten(0, -1)).unwrap();
        assert_eq!(found, Vec::from_iter(0..24));
        let too_much = Grid::from([1, 1]).with_shared(1 << 20);
        // SAFETY: as above, if it ran at all.
        let refused = unsafe { stream.launch((&PROBE, &[], "probe"), too_much, 32, &arguments) };
        assert!(refused.is_err());
    }
}
