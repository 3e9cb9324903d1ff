//! The kernels that draw tokens, against a reference that goes through a row id by id.

use tch::{Kind, Tensor};

use super::{F32_LIMIT, Test, poison};
use crate::decode::sampling::{self, Truncation};
use crate::error::KernelError;

impl Test<'_> {
    pub(super) fn sampling(&mut self, batch: i64, vocab: i64) -> Result<(), KernelError> {
        let (queue, device) = (self.queue, self.device);
        let logits = self.random(&[batch, vocab]) * 3.0;
        let draws = Tensor::rand([batch], (Kind::Double, device));
        let _ = draws.get(0).fill_(1.0 - f64::EPSILON);
        let is_allowed = |id: usize| id % 7 != 3 && id + 50 < vocab as usize;
        let bits = sampling::allowed_bits(vocab as usize, is_allowed).to_device(device);
        let host =
            |x: &Tensor| Vec::<f64>::try_from(x.to_kind(Kind::Double)).expect("a row of numbers");
        let us = host(&draws);
        for (what, temperature, allowed) in [("", 1.0, None), (" of some ids", 0.7, Some(&bits))] {
            let mut found: [Vec<f64>; 3] = Default::default();
            for row in 0..batch {
                let z: Vec<f32> = host(&logits.get(row))
                    .into_iter()
                    .map(|z| z as f32)
                    .collect();
                let may = |id: usize| allowed.is_none() || is_allowed(id);
                let (token, logprob, entropy) =
                    sampling::sample_reference(&z, may, temperature, us[row as usize]);
                found[0].push(token as f64);
                found[1].push(logprob);
                found[2].push(entropy);
            }
            let references = found.map(|row| Tensor::from_slice(&row).to_device(device));
            let name = format!("sample{what} {batch} x {vocab}");
            self.check(name, F32_LIMIT, &references, || {
                let tokens = poison(&[batch], Kind::Int, device);
                let [logprobs, entropies] = [(); 2].map(|()| poison(&[batch], Kind::Float, device));
                let rows = sampling::Rows {
                    logits: &logits,
                    draws: &draws,
                    tokens: &tokens,
                    logprobs: &logprobs,
                    entropies: &entropies,
                };
                queue.follow_default_stream()?;
                sampling::sample(queue, rows, allowed, temperature)?;
                Ok(vec![tokens, logprobs, entropies])
            })?;
        }
        Ok(())
    }

    /// The ids kept, which may differ from the reference's by the last of a top-p prefix, and what is drawn from them.
    pub(super) fn truncated_sampling(
        &mut self,
        batch: i64,
        vocab: i64,
        truncation: Truncation,
    ) -> Result<(), KernelError> {
        let (queue, device) = (self.queue, self.device);
        let logits = self.random(&[batch, vocab]) * 3.0;
        let draws = Tensor::rand([batch], (Kind::Double, device));
        let _ = draws.get(0).fill_(1.0 - f64::EPSILON);
        let is_allowed = |id: usize| id % 7 != 3 && id + 50 < vocab as usize;
        let bits = sampling::allowed_bits(vocab as usize, is_allowed).to_device(device);
        let temperature = 0.7;
        let words = (vocab + 31) / 32;
        let run = || {
            let [tokens, kept] =
                [vec![batch], vec![batch, words]].map(|shape| poison(&shape, Kind::Int, device));
            let [logprobs, entropies] = [(); 2].map(|()| poison(&[batch], Kind::Float, device));
            let rows = sampling::Rows {
                logits: &logits,
                draws: &draws,
                tokens: &tokens,
                logprobs: &logprobs,
                entropies: &entropies,
            };
            queue.follow_default_stream()?;
            sampling::sample_truncated(queue, rows, Some(&bits), temperature, truncation, &kept)?;
            queue.wait()?;
            Ok::<_, KernelError>(vec![tokens, logprobs, entropies, kept])
        };
        let host =
            |x: &Tensor| Vec::<f64>::try_from(x.to_kind(Kind::Double)).expect("a row of numbers");
        let (us, found_kept) = (host(&draws), run()?.remove(3));
        let mut found: [Vec<f64>; 3] = Default::default();
        let mut others = Vec::new();
        for row in 0..batch {
            let z: Vec<f32> = host(&logits.get(row))
                .into_iter()
                .map(|z| z as f32)
                .collect();
            let expected = sampling::kept_reference(&z, is_allowed, temperature, truncation);
            let kept = Vec::<i32>::try_from(found_kept.get(row)).expect("a row of words");
            let kept = sampling::kept_ids(&kept);
            let surplus = |a: &[u32], b: &[u32]| a.iter().filter(|id| !b.contains(id)).count();
            others.push((surplus(&kept, &expected) + surplus(&expected, &kept)) as f64);
            let u = us[row as usize];
            // Among what was kept; the entropy is that of all allowed ids.
            let of_kept = |id: usize| kept.contains(&(id as u32));
            let masked: Vec<f32> = (0..z.len())
                .map(|id| {
                    if of_kept(id) {
                        z[id]
                    } else {
                        f32::NEG_INFINITY
                    }
                })
                .collect();
            let (token, logprob, _) = sampling::sample_reference(&masked, of_kept, temperature, u);
            let (.., entropy) = sampling::sample_reference(&z, is_allowed, temperature, u);
            found[0].push(token as f64);
            found[1].push(logprob);
            found[2].push(entropy);
        }
        let name = format!("sample {truncation:?} {batch} x {vocab}");
        // One id may differ, of as many as there are.
        let zeros = Tensor::zeros([batch], (Kind::Double, device));
        self.check(
            format!("{name}: ids kept otherwise"),
            1.0,
            &[zeros + 1.0],
            || Ok(vec![Tensor::from_slice(&others).to_device(device) + 1.0]),
        )?;
        let references = found.map(|row| Tensor::from_slice(&row).to_device(device));
        self.check(name, F32_LIMIT, &references, run)
    }
}
