//! A graph that takes numbers from the host and gives some back, with room for one step that runs ahead.
//!
//! Copies lie around the graph, between the card and two pairs of pinned buffers used in turn: while the host reads
//! what one step gave, the next is under way. The numbers are i32 words; what they mean is the caller's.

use std::ptr;

use cudarc::driver::sys;
use tch::{Kind, Tensor};

use super::context::check;
use super::graph::Graph;
use super::pinned::Pinned;
use super::queue::Queue;
use crate::error::KernelError;

/// Steps that may be launched before the first of them is read.
const TURNS: usize = 2;

/// A point on a queue that the host can wait for.
#[derive(Debug)]
struct Mark(sys::CUevent);

// SAFETY: the driver's objects may be used from any thread, one at a time: Mark is not Sync.
unsafe impl Send for Mark {}

impl Mark {
    fn new(queue: &Queue) -> Result<Mark, KernelError> {
        queue.cuda().enter()?;
        let mut event = ptr::null_mut();
        let no_timing = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: the card's context is the thread's; the out pointer lives through the call.
        check("cuEventCreate", unsafe {
            sys::cuEventCreate(&mut event, no_timing)
        })?;
        Ok(Mark(event))
    }

    /// Sets the mark behind all that `queue` has been given.
    fn set(&self, queue: &Queue) -> Result<(), KernelError> {
        // SAFETY: event and stream are alive.
        check("cuEventRecord", unsafe {
            sys::cuEventRecord(self.0, queue.stream())
        })
    }

    /// Waits until the queue has reached the mark.
    fn wait(&self) -> Result<(), KernelError> {
        // SAFETY: the event is alive.
        check("cuEventSynchronize", unsafe {
            sys::cuEventSynchronize(self.0)
        })
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once; the driver keeps what is still under way.
        unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}

/// The buffers of a step, in pinned memory.
#[derive(Debug)]
struct Turn {
    input: Pinned<i32>,
    output: Pinned<i32>,
    done: Mark,
    /// Launched and not read.
    is_out: bool,
}

/// A step that was launched: [`StepGraph::read`] takes it back.
#[derive(Debug)]
#[must_use = "its buffers stay taken until it is read"]
pub struct Launched(usize);

/// A graph with its inputs and outputs.
#[derive(Debug)]
pub struct StepGraph {
    graph: Graph,
    turns: [Turn; TURNS],
    next: usize,
    on_card_input: Tensor,
    on_card_output: Tensor,
}

impl StepGraph {
    /// Records `work`, which reads its argument (i32 `[num_inputs]`) and writes `output`, i32, contiguous, on the
    /// queue's card. Graphs may share an `output`: it is copied out before the queue's next step begins.
    ///
    /// # Errors
    /// Those of `work`, and refusals of the driver.
    pub fn record(
        queue: &Queue,
        num_inputs: usize,
        output: &Tensor,
        work: impl FnOnce(&Tensor) -> Result<(), KernelError>,
    ) -> Result<StepGraph, KernelError> {
        let cuda = queue.cuda();
        let turn = || {
            Ok(Turn {
                input: Pinned::zeros(cuda, num_inputs)?,
                output: Pinned::zeros(cuda, output.numel())?,
                done: Mark::new(queue)?,
                is_out: false,
            })
        };
        let turns = [turn()?, turn()?];
        let on_card_input = Tensor::zeros([num_inputs as i64], (Kind::Int, cuda.device()));
        Ok(StepGraph {
            graph: queue.record(|| work(&on_card_input))?,
            turns,
            next: 0,
            on_card_input,
            on_card_output: output.shallow_clone(),
        })
    }

    /// Fills the inputs and runs the graph behind all that libtorch and the queue have been given, without waiting.
    ///
    /// # Errors
    /// The driver refuses.
    ///
    /// # Panics
    /// As many steps as there are buffers have not been read.
    pub fn launch(
        &mut self,
        queue: &Queue,
        fill: impl FnOnce(&mut [i32]),
    ) -> Result<Launched, KernelError> {
        let index = self.next;
        let turn = &mut self.turns[index];
        assert!(!turn.is_out, "{TURNS} steps are out");
        fill(&mut turn.input);
        queue.follow_default_stream()?;
        // SAFETY: pinned memory and tensors live as long as the graph, whose drop waits for the queue; `is_out`
        // keeps the host away from both buffers until `read` has waited.
        unsafe {
            queue.upload(&turn.input, &self.on_card_input)?;
            self.graph.launch(queue)?;
            queue.download(&self.on_card_output, &turn.output)?;
        }
        turn.done.set(queue)?;
        turn.is_out = true;
        self.next = (index + 1) % TURNS;
        Ok(Launched(index))
    }

    /// Waits for a step of this graph and shows its outputs.
    ///
    /// # Errors
    /// The work failed.
    pub fn read(&mut self, launched: Launched) -> Result<&[i32], KernelError> {
        let turn = &mut self.turns[launched.0];
        turn.done.wait()?;
        turn.is_out = false;
        Ok(&turn.output)
    }
}

impl Drop for StepGraph {
    fn drop(&mut self) {
        for turn in self.turns.iter().filter(|turn| turn.is_out) {
            // A failure leaves nothing to do.
            let _ = turn.done.wait();
        }
    }
}
