//! Prefill and one-token decode equal the full forward pass, whatever lies in the slots around.

use super::*;
use crate::kv_cache::{CacheShape, KeyValueCache};

const TOLERANCE: f64 = 1e-5;

/// Slot after slot: what a sequence has been given, and logits and experts of every token of it.
struct Rollout<'a> {
    model: &'a Transformer,
    cache: KvCache,
    sequences: Vec<Vec<u32>>,
    logits: Vec<Vec<Tensor>>,
    routing: Vec<Vec<Tensor>>,
}

/// Pages of 4 tokens, so that sequences take several, and share and copy them.
fn small_pages(config: &ModelConfig, num_slots: usize, capacity: usize) -> KvCache {
    let shape = CacheShape {
        num_slots,
        num_pages: num_slots * capacity.div_ceil(4),
        page_tokens: 4,
    };
    KvCache::of_pages(config, shape, Kind::Float, Device::Cpu)
}

impl<'a> Rollout<'a> {
    fn new(model: &'a Transformer, num_slots: usize) -> Rollout<'a> {
        Rollout {
            model,
            cache: small_pages(model.config(), num_slots, 40),
            sequences: vec![Vec::new(); num_slots],
            logits: (0..num_slots).map(|_| Vec::new()).collect(),
            routing: (0..num_slots).map(|_| Vec::new()).collect(),
        }
    }

    fn prefill(&mut self, slots: &[usize], prompts: &[&[u32]]) {
        let output = self
            .model
            .prefill(&mut self.cache, slots, prompts, &recording());
        let mut start = 0;
        for (&slot, prompt) in slots.iter().zip(prompts) {
            let len = prompt.len() as i64;
            self.sequences[slot] = prompt.to_vec();
            self.logits[slot] = vec![self.model.logits(&output.hidden.narrow(0, start, len))];
            let routing = output.routing.iter().map(|ids| ids.narrow(0, start, len));
            self.routing[slot] = routing.collect();
            start += len;
        }
    }

    fn decode(&mut self, tokens: &[u32]) {
        let ids: Vec<i64> = tokens.iter().map(|&id| i64::from(id)).collect();
        let output = self
            .model
            .decode(&mut self.cache, &Tensor::from_slice(&ids), &recording());
        for (slot, &token) in tokens.iter().enumerate() {
            let row = slot as i64;
            self.sequences[slot].push(token);
            self.logits[slot].push(self.model.logits(&output.hidden.narrow(0, row, 1)));
            let routing = output.routing.iter().map(|ids| ids.narrow(0, row, 1));
            self.routing[slot].extend(routing);
        }
    }

    fn share_slot(&mut self, from: usize, to: usize) {
        self.cache.share_slot(from, to);
        let copies = |tensors: &[Tensor]| tensors.iter().map(Tensor::copy).collect();
        self.sequences[to] = self.sequences[from].clone();
        self.logits[to] = copies(&self.logits[from]);
        self.routing[to] = copies(&self.routing[from]);
    }

    fn assert_slot_equals_the_full_forward(&self, slot: usize) {
        let sequence = &self.sequences[slot];
        assert_eq!(self.cache.pages.len(slot), sequence.len());
        let output = self.model.forward_packed(&alone(sequence), &recording());
        let found = Tensor::cat(&self.logits[slot], 0);
        let expected = self.model.logits(&output.hidden);
        assert_close(&found, &expected, TOLERANCE, &format!("slot {slot}"));
        match output.routing {
            Some(routing) => assert_eq!(Tensor::cat(&self.routing[slot], 0), routing),
            None => assert!(self.routing[slot].is_empty()),
        }
    }
}

#[test]
fn decoding_sequences_of_different_lengths_equals_the_full_forward() {
    for config in variants() {
        let model = loud_model(&config, Kind::Float);
        let mut rollout = Rollout::new(&model, 4);
        let prompts = [sequence(1, 11), sequence(2, 4), sequence(3, 1)];
        // Slots in another order than prompts, and a fourth slot that stays empty.
        rollout.prefill(&[1, 2, 0], &prompts.each_ref().map(Vec::as_slice));
        for tokens in sequence(4, 27).chunks(3) {
            rollout.decode(tokens);
        }
        for slot in 0..3 {
            rollout.assert_slot_equals_the_full_forward(slot);
        }
        assert_eq!(rollout.cache.pages.len(3), 0);
    }
}

#[test]
fn slots_that_share_continue_apart_and_forget_what_they_held() {
    for config in variants() {
        let model = loud_model(&config, Kind::Float);
        let mut rollout = Rollout::new(&model, 3);
        // Longer remains of an old sequence lie in the slots that come to share.
        rollout.prefill(&[1, 2], &[&sequence(5, 30), &sequence(6, 21)]);
        rollout.prefill(&[0], &[&sequence(7, 8)]);
        rollout.share_slot(0, 1);
        rollout.share_slot(0, 2);
        for tokens in sequence(8, 12).chunks(3) {
            rollout.decode(tokens);
        }
        for slot in 0..3 {
            rollout.assert_slot_equals_the_full_forward(slot);
        }
        // Slot 0 is free, the last sequence moves there, a new prompt comes into the last slot.
        rollout.cache.pages.clear(0);
        rollout.share_slot(2, 0);
        rollout.prefill(&[2], &[&sequence(9, 2)]);
        for tokens in sequence(10, 21).chunks(3) {
            rollout.decode(tokens);
        }
        for slot in 0..3 {
            rollout.assert_slot_equals_the_full_forward(slot);
        }
    }
}

#[test]
fn a_shared_page_is_copied_before_it_is_written() {
    // Keys of the last layer, a row a token.
    let keys = |rollout: &Rollout, slot: usize| {
        let pages = &rollout.cache.pages;
        let rows: Vec<i64> = (0..pages.len(slot)).map(|t| pages.row(slot, t)).collect();
        let all = match &rollout.cache.layers[1].main {
            KeyValueCache::Heads { k, .. } => k,
            KeyValueCache::Latent(latents) => latents,
        };
        all.index_select(0, &Tensor::from_slice(&rows))
    };
    for config in sparse_configs(TOPK) {
        let model = loud_model(&config, Kind::Float);
        let mut rollout = Rollout::new(&model, 2);
        rollout.prefill(&[0, 1], &[&sequence(1, 6), &sequence(2, 3)]);
        let before = keys(&rollout, 0);
        rollout.cache.share_slot(0, 1);
        assert_eq!(rollout.cache.pages.table(0), rollout.cache.pages.table(1));
        rollout.decode(&[9, 10]);
        let (first, second) = (keys(&rollout, 0), keys(&rollout, 1));
        assert_eq!(first.narrow(0, 0, 6), before);
        assert_eq!(second.narrow(0, 0, 6), before);
        assert_ne!(first.get(6), second.get(6));
        let [first, second] = [0, 1].map(|slot| rollout.cache.pages.table(slot));
        assert_eq!(first[0], second[0], "the whole page stays shared");
        assert_ne!(first[1], second[1]);
    }
}

/// Fewer keys than `index_topk` beside a longer neighbour: the short one sees all of its own.
#[test]
fn key_share_of_a_decode_step_is_the_mean_over_slots() {
    let model = loud_model(&with_indexer(dense_config(), TOPK), Kind::Float);
    let mut rollout = Rollout::new(&model, 2);
    rollout.prefill(&[0, 1], &[&sequence(1, 9), &sequence(2, 2)]);
    let tokens = Tensor::from_slice(&[3i64, 4]);
    let output = model.decode(&mut rollout.cache, &tokens, &ForwardOptions::inference());
    // 5 of 10 keys, and 3 of 3.
    assert_eq!(output.key_share, 0.75);
}

#[test]
fn prefill_fills_the_cache_under_activation_checkpointing_too() {
    let model = loud_model(&dense_config(), Kind::Float);
    let options = ForwardOptions {
        activation_checkpointing: true,
        ..ForwardOptions::inference()
    };
    let mut rollout = Rollout::new(&model, 1);
    let prompt = sequence(1, 5);
    let output = model.prefill(&mut rollout.cache, &[0], &[&prompt], &options);
    rollout.sequences[0] = prompt;
    rollout.logits[0] = vec![model.logits(&output.hidden)];
    rollout.decode(&[7]);
    rollout.assert_slot_equals_the_full_forward(0);
}
