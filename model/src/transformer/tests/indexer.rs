//! The indexer learns from its own loss, and nothing else does.

use super::*;

/// KL of each layer averaged over tokens, summed; and the language loss.
fn losses(model: &Transformer, tokens: &[u32], attention: Attention) -> (Tensor, Tensor) {
    let options = ForwardOptions {
        attention,
        indexer_loss: true,
        ..ForwardOptions::inference()
    };
    let output = model.forward_packed(&alone(tokens), &options);
    let kl = Tensor::stack(&output.indexer_losses, 0).sum(Kind::Float) / tokens.len() as f64;
    (kl, language_loss(model, &output.hidden, tokens, 1))
}

fn sparse_models() -> [Transformer; 2] {
    let grouped = with_indexer(with_experts(dense_config()), TOPK);
    [grouped, latent_sparse_config(TOPK)].map(|config| loud_model(&config, Kind::Float))
}

#[test]
fn indexer_loss_leaves_gradients_of_the_main_model_alone() {
    let tokens = sequence(1, 20);
    for model in sparse_models() {
        for attention in [Attention::Dense, Attention::Sparse] {
            let options = ForwardOptions {
                attention,
                ..ForwardOptions::inference()
            };
            let output = model.forward_packed(&alone(&tokens), &options);
            language_loss(&model, &output.hidden, &tokens, 1).backward();
            let language_only = take_gradients(&model);
            let (kl, language) = losses(&model, &tokens, attention);
            (kl * 3.0 + language).backward();
            for ((name, group, with_kl), (_, _, without)) in
                take_gradients(&model).iter().zip(&language_only)
            {
                match group {
                    ParameterGroup::Main | ParameterGroup::Frozen => {
                        assert_eq!(with_kl, without, "{name}")
                    }
                    ParameterGroup::Indexer => {
                        let size = with_kl.as_ref().unwrap().abs().max().double_value(&[]);
                        assert!(size > 1e-4, "{name} learns: {size}");
                        assert!(without.is_none(), "{name} learns from language");
                    }
                }
            }
        }
    }
}

#[test]
fn indexer_gets_no_gradient_from_language_and_language_none_from_the_indexer() {
    let tokens = sequence(1, 20);
    for model in sparse_models() {
        for attention in [Attention::Dense, Attention::Sparse] {
            let (_, language) = losses(&model, &tokens, attention);
            language.backward();
            for (name, group, gradient) in take_gradients(&model) {
                let is_main = group == ParameterGroup::Main;
                assert_eq!(gradient.is_some(), is_main, "language: {name}");
            }
            let (kl, _) = losses(&model, &tokens, attention);
            kl.backward();
            for (name, group, gradient) in take_gradients(&model) {
                let is_indexer = group == ParameterGroup::Indexer;
                assert_eq!(gradient.is_some(), is_indexer, "KL: {name}");
            }
        }
    }
}

#[test]
fn warm_up_with_a_frozen_main_model_trains_the_indexer_alone() {
    let tokens = sequence(1, 20);
    for model in sparse_models() {
        let (kl, language) = losses(&model, &tokens, Attention::Dense);
        (kl + language).backward();
        let trained = take_gradients(&model);
        for parameter in model.parameters() {
            let train = parameter.group == ParameterGroup::Indexer;
            let _ = parameter.master.set_requires_grad(train);
        }
        for activation_checkpointing in [false, true] {
            let options = ForwardOptions {
                attention: Attention::Dense,
                indexer_loss: true,
                activation_checkpointing,
                ..ForwardOptions::inference()
            };
            let output = model.forward_packed(&alone(&tokens), &options);
            let kl = Tensor::stack(&output.indexer_losses, 0).sum(Kind::Float) / 20.0;
            kl.backward();
            let frozen = take_gradients(&model);
            for ((name, group, frozen), (_, _, trained)) in frozen.iter().zip(&trained) {
                match group {
                    ParameterGroup::Main | ParameterGroup::Frozen => {
                        assert!(frozen.is_none(), "{name}");
                    }
                    ParameterGroup::Indexer => {
                        let (frozen, trained) =
                            (frozen.as_ref().unwrap(), trained.as_ref().unwrap());
                        assert_close(frozen, trained, 1e-6, name);
                    }
                }
            }
        }
    }
}

#[test]
fn descending_the_indexer_loss_lowers_it() {
    for attention in [Attention::Dense, Attention::Sparse] {
        let tokens = sequence(1, 30);
        for model in sparse_models() {
            let mut found = Vec::new();
            for _ in 0..24 {
                let (kl, _) = losses(&model, &tokens, attention);
                kl.backward();
                found.push(kl.double_value(&[]));
                for parameter in model.parameters() {
                    if parameter.group == ParameterGroup::Indexer {
                        let mut weight = parameter.master.detach();
                        weight -= parameter.master.grad() * 0.05;
                    }
                    parameter.clear_grad();
                }
            }
            assert!(found[23] < 0.8 * found[0], "{attention:?}: {found:?}");
        }
    }
}

#[test]
fn indexer_loss_is_zero_where_a_query_sees_one_key() {
    for model in sparse_models() {
        for attention in [Attention::Dense, Attention::Sparse] {
            let options = ForwardOptions {
                attention,
                indexer_loss: true,
                ..ForwardOptions::inference()
            };
            let output = model.forward_packed(&alone(&[7]), &options);
            let losses = output.indexer_losses.iter();
            let losses: Vec<f64> = losses.map(|loss| loss.double_value(&[])).collect();
            assert_eq!(losses, [0.0, 0.0]);
        }
    }
}
