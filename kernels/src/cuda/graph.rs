//! A recorded sequence of kernels, products and copies that the driver launches as one.

use cudarc::driver::sys;
use tch::Tensor;

use super::context::check;
use super::queue::Queue;
use crate::error::KernelError;

/// Work that was recorded by [`Queue::record`], with all tensors that it reads and writes.
#[derive(Debug)]
pub struct Graph {
    exec: sys::CUgraphExec,
    /// Kept, since the recorded work knows their addresses alone.
    _tensors: Vec<Tensor>,
}

impl Graph {
    /// # Safety
    /// `graph` was captured, is not used again, and works on `tensors` and on host memory that outlives the result.
    pub(super) unsafe fn new(
        graph: sys::CUgraph,
        tensors: Vec<Tensor>,
    ) -> Result<Graph, KernelError> {
        let mut exec = std::ptr::null_mut();
        // SAFETY: the caller's; the out pointer lives through the call.
        let made = unsafe { sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0) };
        // SAFETY: the executable graph is a copy.
        unsafe { sys::cuGraphDestroy(graph) };
        check("cuGraphInstantiateWithFlags", made)?;
        Ok(Graph {
            exec,
            _tensors: tensors,
        })
    }

    /// Starts the work behind what `queue` does already.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn launch(&self, queue: &Queue) -> Result<(), KernelError> {
        // SAFETY: the graph is instantiated and its tensors are alive.
        check("cuGraphLaunch", unsafe {
            sys::cuGraphLaunch(self.exec, queue.stream())
        })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: instantiated by `new`, destroyed once; the driver waits for launches under way.
        unsafe { sys::cuGraphExecDestroy(self.exec) };
    }
}
