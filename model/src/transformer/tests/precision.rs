//! Computing in bf16: near to f32, with f32 masters that the optimizer can rely on.

use super::*;

fn logits(model: &Transformer, options: &ForwardOptions) -> Tensor {
    let output = model.forward_packed(&alone(&sequence(1, 24)), options);
    model.logits(&output.hidden)
}

/// bf16 keeps 8 bits. Experts are replayed, since a near tie may be decided differently.
#[test]
fn bf16_logits_are_near_those_of_f32() {
    for config in variants() {
        let (wide, narrow) = (
            loud_model(&config, Kind::Float),
            loud_model(&config, Kind::BFloat16),
        );
        let record = ForwardOptions {
            attention: Attention::Dense,
            ..recording()
        };
        let output = wide.forward_packed(&alone(&sequence(1, 24)), &record);
        let options = ForwardOptions {
            routing: output.routing.map_or(Routing::Free, Routing::Replay),
            ..record
        };
        let (wide, narrow) = (logits(&wide, &options), logits(&narrow, &options));
        assert_eq!(narrow.kind(), Kind::Float, "logits come in f32");
        let difference = max_difference(&wide, &narrow);
        let spread = wide.std(false).double_value(&[]);
        let rms = (&wide - &narrow).square().mean(Kind::Float).sqrt();
        let rms = rms.double_value(&[]);
        // Latents are rounded once more than heads: after their projection, norm and rotation.
        let bound = if config.mla.is_some() { 0.15 } else { 0.1 };
        assert!(difference < bound * spread, "{difference} of {spread}");
        assert!(rms < 0.04 * spread, "{rms} of {spread}");
        assert!(difference > 0.0, "bf16 computed in f32");
    }
}

#[test]
fn bf16_decoding_runs_in_bf16_and_is_near_the_full_forward() {
    let model = loud_model(&with_indexer(dense_config(), 64), Kind::BFloat16);
    let tokens = sequence(1, 24);
    let mut cache = KvCache::new(model.config(), 1, 24, Kind::BFloat16, Device::Cpu);
    let options = ForwardOptions::inference();
    let prompt = model.prefill(&mut cache, &[0], &[&tokens[..10]], &options);
    let mut hidden = vec![prompt.hidden];
    for &token in &tokens[10..] {
        let token = Tensor::from_slice(&[i64::from(token)]);
        hidden.push(model.decode(&mut cache, &token, &options).hidden);
    }
    let hidden = Tensor::cat(&hidden, 0);
    assert_eq!(hidden.kind(), Kind::BFloat16);
    let (found, expected) = (model.logits(&hidden), logits(&model, &options));
    assert!(max_difference(&found, &expected) < 0.1 * expected.std(false).double_value(&[]));
}

#[test]
fn bf16_gradients_arrive_in_f32_masters() {
    let tokens = sequence(1, 24);
    let config = with_indexer(with_experts(dense_config()), TOPK);
    let ids = {
        let model = loud_model(&config, Kind::Float);
        let output = model.forward_packed(&alone(&tokens), &recording());
        output.routing.unwrap()
    };
    let gradients = |kind: Kind| {
        let model = loud_model(&config, kind);
        let options = ForwardOptions {
            routing: Routing::Replay(ids.shallow_clone()),
            attention: Attention::Dense,
            indexer_loss: true,
            ..ForwardOptions::inference()
        };
        let output = model.forward_packed(&alone(&tokens), &options);
        let language = language_loss(&model, &output.hidden, &tokens, 1);
        (language + Tensor::stack(&output.indexer_losses, 0).sum(Kind::Float)).backward();
        take_gradients(&model)
    };
    for ((name, _, narrow), (_, _, wide)) in gradients(Kind::BFloat16)
        .iter()
        .zip(&gradients(Kind::Float))
    {
        let (narrow, wide) = (narrow.as_ref().unwrap(), wide.as_ref().unwrap());
        assert_eq!(narrow.kind(), Kind::Float, "{name}");
        let cosine = (narrow * wide).sum(Kind::Float) / (narrow.norm() * wide.norm());
        let cosine = cosine.double_value(&[]);
        assert!(cosine > 0.99, "{name}: cosine {cosine}");
    }
}

#[test]
fn publish_makes_the_masters_visible_to_inference() {
    let (model, options) = (
        loud_model(&dense_config(), Kind::BFloat16),
        ForwardOptions::inference(),
    );
    let inference = || tch::no_grad(|| logits(&model, &options));
    let before = inference();
    for parameter in model.parameters() {
        // A step of a size that bf16 rounds away counts in the master.
        let mut master = parameter.master.detach();
        for _ in 0..100 {
            master += 1e-4;
        }
    }
    assert_eq!(inference(), before);
    let learner = logits(&model, &options).detach();
    assert!(
        max_difference(&learner, &before) > 0.01,
        "training sees the masters"
    );
    model.publish();
    assert_eq!(inference(), learner);
}

#[test]
fn f32_inference_sees_the_masters_at_once() {
    let (model, options) = (
        loud_model(&dense_config(), Kind::Float),
        ForwardOptions::inference(),
    );
    for parameter in model.parameters() {
        let mut master = parameter.master.detach();
        master += 0.01;
    }
    let learner = logits(&model, &options).detach();
    assert_eq!(tch::no_grad(|| logits(&model, &options)), learner);
}
