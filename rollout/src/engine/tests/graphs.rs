//! Decode steps by CUDA graphs, one running ahead: what is recorded is what a packed pass finds for the same tokens.
//! They need a card; elsewhere they say that they were skipped.

use super::replay::{ALL, BF16_MAX, BF16_MEAN, compare};
use super::*;

/// Plays the requests; with `settles`, no step runs ahead of the next one.
fn play(
    model: &Transformer,
    settings: &GenerationSettings,
    settles: bool,
) -> (Vec<Vec<GeneratedSample>>, GenerationStats, usize) {
    let mut engine = Engine::new(model, settings, &requests()).unwrap();
    assert!(engine.graphs.is_some(), "this model decodes by graphs");
    let (mut num_ahead, mut num_finished) = (0, 0);
    while let Some(finished) = engine.step().unwrap() {
        num_finished += finished;
        num_ahead += usize::from(engine.pending.is_some());
        if settles {
            engine.settle().unwrap();
        }
    }
    let stats = engine.take_stats();
    let groups = engine.take_finished();
    assert_eq!(num_finished, 14, "every sample ends once");
    let samples = groups.into_iter().map(|group| group.samples);
    (samples.collect(), stats, num_ahead)
}

#[test]
fn steps_that_run_ahead_record_what_they_drew() {
    let device = kernels::runtime::start(1).device;
    if device == Device::Cpu {
        eprintln!("SKIPPED: no GPU");
        return;
    }
    for moe in [false, true] {
        let config = ModelConfig {
            head_dim: 16,
            ..config(moe, false)
        };
        let model = load_on(&config, Kind::BFloat16, device);
        // All at once, and with samples that wait for the slots of those that end.
        for (sampling, num_slots) in [(whole(), 14), (whole(), 3), (truncated(), 14)] {
            let settings = settings(sampling.clone(), num_slots);
            for settles in [false, true] {
                let (samples, stats, num_ahead) = play(&model, &settings, settles);
                assert!(num_ahead > 0, "some steps run ahead");
                let lens = || samples.iter().flatten().map(|sample| sample.tokens.len());
                assert_eq!(stats.sampled_tokens, lens().sum::<usize>());
                assert_eq!(
                    stats.decoded_tokens,
                    lens().map(|len| len - 1).sum::<usize>()
                );
                let found = compare(&model, &samples, sampling.temperature, ALL);
                let what = format!(
                    "experts {moe}, {sampling:?}, {num_slots} slots, settles {settles}: {found:?}"
                );
                eprintln!("{what}, {num_ahead} steps ahead");
                assert!(found.mean < BF16_MEAN && found.max < BF16_MAX, "{what}");
                for sample in samples.iter().flatten() {
                    for (index, token) in sample.tokens.iter().enumerate() {
                        let kept = sample.kept.row(index);
                        assert!(kept.len() <= sampling.top_k, "{kept:?}");
                        assert_eq!(kept.contains(token), sampling.truncates());
                    }
                    let (last, before) = sample.tokens.split_last().unwrap();
                    assert!(before.iter().all(|token| !STOP.contains(token)));
                    let is_stopped = sample.finish_reason == FinishReason::Stop;
                    assert_eq!(STOP.contains(last), is_stopped);
                    assert!(is_stopped || sample.tokens.len() == 12);
                }
            }
        }
    }
}
