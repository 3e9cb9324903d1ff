//! Activation checkpointing saves memory and changes nothing else.

use super::*;

#[test]
fn activation_checkpointing_changes_neither_losses_nor_gradients() {
    let tokens = sequence(1, 18);
    for config in variants() {
        let model = loud_model(&config, Kind::Float);
        for attention in [Attention::Dense, Attention::Sparse] {
            let run = |routing: Routing, activation_checkpointing: bool| {
                let options = ForwardOptions {
                    routing,
                    attention,
                    indexer_loss: true,
                    selection: Selection::Record,
                    activation_checkpointing,
                };
                let output = model.forward_packed(&alone(&tokens), &options);
                let mut loss = language_loss(&model, &output.hidden, &tokens, 1);
                for indexer_loss in &output.indexer_losses {
                    loss += indexer_loss * 0.5;
                }
                loss.backward();
                (output, loss.detach(), take_gradients(&model))
            };
            let (kept, loss, gradients) = run(Routing::Record, false);
            let (again, loss_again, gradients_again) = run(Routing::Record, true);
            assert_eq!(again.hidden.detach(), kept.hidden.detach());
            assert_eq!(loss_again, loss);
            let num_losses = if config.dsa.is_some() { 2 } else { 0 };
            assert_eq!(kept.indexer_losses.len(), num_losses);
            assert_eq!(again.indexer_losses.len(), num_losses);
            assert_eq!(again.routing, kept.routing);
            assert_eq!(again.selected, kept.selected);
            assert_same_gradients(&gradients_again, &gradients, 1e-6);
            for (name, group, gradient) in &gradients {
                // Every parameter takes part in this test, but those that are never trained.
                let is_trained = *group != ParameterGroup::Frozen;
                assert_eq!(gradient.is_some(), is_trained, "{name}");
            }

            if let Some(ids) = kept.routing {
                // Not the model's own: the second run must be forced like the first.
                let replay = || Routing::Replay(other_experts(&ids));
                let (kept, loss, gradients) = run(replay(), false);
                let (again, loss_again, gradients_again) = run(replay(), true);
                assert_eq!(loss_again, loss);
                assert_eq!(again.routing_agreement(), kept.routing_agreement());
                assert_same_gradients(&gradients_again, &gradients, 1e-6);
            }
        }
    }
}
