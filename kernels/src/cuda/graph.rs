//! A recorded sequence of kernels, products and copies that the driver launches as one.

use cudarc::driver::sys;
use tch::{Kind, Tensor};

use super::context::check;
use super::pinned::Pinned;
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

/// A graph that takes numbers from the host and gives some back: both copies are part of it.
///
/// The numbers are i32 words; what they mean is the caller's.
#[derive(Debug)]
pub struct StepGraph {
    graph: Graph,
    input: Pinned<i32>,
    output: Pinned<i32>,
}

impl StepGraph {
    /// Records `work`, which reads its first argument (i32 `[num_inputs]`) and writes its second (`[num_outputs]`).
    ///
    /// # Errors
    /// Those of `work`, and refusals of the driver.
    pub fn record(
        queue: &Queue,
        [num_inputs, num_outputs]: [usize; 2],
        work: impl FnOnce(&Tensor, &Tensor) -> Result<(), KernelError>,
    ) -> Result<StepGraph, KernelError> {
        let input = Pinned::zeros(queue.cuda(), num_inputs)?;
        let output = Pinned::zeros(queue.cuda(), num_outputs)?;
        let on_card = |len| Tensor::zeros([len as i64], (Kind::Int, queue.cuda().device()));
        let (on_card_input, on_card_output) = (on_card(num_inputs), on_card(num_outputs));
        let graph = queue.record(|| {
            // SAFETY: the pinned memory lives as long as the graph, and `run` waits before it is touched again.
            unsafe {
                queue.upload(&input, &on_card_input)?;
                work(&on_card_input, &on_card_output)?;
                queue.download(&on_card_output, &output)
            }
        })?;
        Ok(StepGraph {
            graph,
            input,
            output,
        })
    }

    /// Fills the inputs, runs the graph behind all that libtorch has been given, waits, and shows the outputs.
    ///
    /// # Errors
    /// The work failed.
    pub fn run(
        &mut self,
        queue: &Queue,
        fill: impl FnOnce(&mut [i32]),
    ) -> Result<&[i32], KernelError> {
        fill(&mut self.input);
        queue.follow_default_stream()?;
        self.graph.launch(queue)?;
        queue.wait()?;
        Ok(&self.output)
    }
}
