//! Numbers that stay on the device until all of them are read at once.
//!
//! Reading one makes the host wait for all work before it, and leaves the device without work until the host has found
//! more. f64 holds every f32, every bool and every count below 2^53 as it is.

use std::ops::Range;

use kernels::tch::{Kind, Tensor};

/// Tensors to read, and where their numbers will lie.
#[derive(Debug, Default)]
pub(super) struct Readback {
    parts: Vec<Tensor>,
    len: usize,
}

/// Where the numbers of one tensor lie in what [`Readback::read`] returns.
pub(super) type Place = Range<usize>;

impl Readback {
    /// Adds the numbers of `tensor`, in order.
    pub(super) fn push(&mut self, tensor: &Tensor) -> Place {
        let part = tensor.detach().to_kind(Kind::Double).reshape([-1]);
        let start = self.len;
        self.len += part.numel();
        self.parts.push(part);
        start..self.len
    }

    /// All numbers, after one wait for the device.
    pub(super) fn read(self) -> Numbers {
        let all = match self.parts.is_empty() {
            true => Vec::new(),
            false => Vec::try_from(Tensor::cat(&self.parts, 0)).expect("a row of f64"),
        };
        Numbers(all)
    }
}

/// What was read.
#[derive(Debug)]
pub(super) struct Numbers(Vec<f64>);

impl Numbers {
    pub(super) fn at(&self, place: &Place) -> &[f64] {
        &self.0[place.clone()]
    }

    /// The number of a scalar.
    pub(super) fn one(&self, place: &Place) -> f64 {
        self.0[place.start]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_back_as_it_was() {
        let floats = [0.1_f32, -3.5e-30, f32::INFINITY];
        let mut readback = Readback::default();
        let first = readback.push(&Tensor::from_slice(&floats));
        let none = readback.push(&Tensor::from_slice::<f64>(&[]));
        let flags = readback.push(&Tensor::from_slice(&[true, false]));
        let count = readback.push(&Tensor::from(16_777_217_i64));
        let numbers = readback.read();
        let found: Vec<f32> = numbers.at(&first).iter().map(|&n| n as f32).collect();
        assert_eq!(found, floats);
        assert!(numbers.at(&none).is_empty());
        assert_eq!(numbers.at(&flags), [1.0, 0.0]);
        assert_eq!(numbers.one(&count), 16_777_217.0);
        assert!(Readback::default().read().at(&(0..0)).is_empty());
    }
}
