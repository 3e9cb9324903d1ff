use kernels::tch;

use super::*;
use crate::config::ModelConfig;
use crate::random_model::RandomSource;

fn experts(sizes: [usize; 2], kind: Kind) -> Experts {
    tch::set_num_threads(1);
    let mut source = RandomSource::new(&ModelConfig::sizeless_llama(), 1);
    let mut loader = ParameterLoader::new(&mut source, kind, Device::Cpu);
    Experts::load(&mut loader, "mlp", ["gate", "up", "down"], 5, sizes).unwrap()
}

/// Rows of experts 0, 2 and 3; 1 and 4 have none.
fn rows(hidden: i64, kind: Kind) -> (Tensor, Tensor) {
    let x = Tensor::arange(11 * hidden, (Kind::Float, Device::Cpu)).sin() * 30.0;
    let ends = Tensor::from_slice(&[4, 4, 5, 11, 11]);
    (x.view([11, hidden]).to_kind(kind), ends)
}

#[test]
fn every_row_passes_the_expert_of_its_segment() {
    // Grouped, and with an odd width by segments.
    for (sizes, is_grouped) in [([16, 24], true), ([16, 23], false)] {
        let experts = experts(sizes, Kind::Float);
        assert_eq!(experts.stacked.is_some(), is_grouped);
        let (x, ends) = rows(16, Kind::Float);
        let found = experts.forward(&x, &ends);
        let expert_of = [0, 0, 0, 0, 2, 3, 3, 3, 3, 3, 3];
        for (row, expert) in expert_of.into_iter().enumerate() {
            let row = row as i64;
            let alone = experts.experts[expert].forward(&x.get(row).unsqueeze(0));
            let difference = (found.get(row) - alone.squeeze_dim(0)).abs().max();
            assert!(difference.double_value(&[]) < 1e-6, "row {row}");
        }
    }
}

/// Output, then the gradients of the input and of every weight, which are dropped.
fn run(experts: &Experts, x: &Tensor, ends: &Tensor, grouped: bool) -> Vec<Option<Tensor>> {
    let x = x.copy().set_requires_grad(true);
    let y = match (&experts.stacked, grouped) {
        (Some(stacked), true) => experts.forward_grouped(stacked, &x, ends),
        _ => experts.forward_segments(&x, ends),
    };
    y.to_kind(Kind::Float).square().sum(Kind::Float).backward();
    let gradients = experts.parameters().map(|parameter| {
        let gradient = Some(parameter.master.grad()).filter(Tensor::defined);
        let gradient = gradient.map(|gradient| gradient.copy());
        parameter.clear_grad();
        gradient
    });
    [Some(y.detach()), Some(x.grad())]
        .into_iter()
        .chain(gradients)
        .collect()
}

#[test]
fn grouped_products_have_the_values_and_gradients_of_the_segments() {
    for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 2e-2)] {
        let experts = experts([16, 24], kind);
        let (x, ends) = rows(16, kind);
        let expected = run(&experts, &x, &ends, false);
        let found = run(&experts, &x, &ends, true);
        assert_eq!(found.len(), 2 + 5 * 3);
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let (Some(found), Some(expected)) = (found, expected) else {
                assert!(found.is_none() && expected.is_none(), "{i}");
                // Experts 1 and 4 of five.
                assert!([5, 6, 7, 14, 15, 16].contains(&i));
                continue;
            };
            assert_eq!(found.kind(), expected.kind());
            let size = expected.abs().max().double_value(&[]);
            let difference = (found - expected).abs().max().double_value(&[]);
            assert!(
                size > 0.0 && difference <= tolerance * size,
                "{i}: {difference} of {size}"
            );
        }
    }
}

#[test]
fn frozen_experts_pass_the_gradient_on() {
    let experts = experts([16, 24], Kind::Float);
    let (x, ends) = rows(16, Kind::Float);
    let expected = run(&experts, &x, &ends, true);
    for parameter in experts.parameters() {
        let _ = parameter.master.set_requires_grad(false);
    }
    let frozen = run(&experts, &x, &ends, true);
    assert_eq!(frozen[1], expected[1]);
    assert!(frozen[2..].iter().all(Option::is_none));
}

/// Parameters are parts of what the products read: an update of a master is seen at once in f32, after
/// publishing in bf16.
#[test]
fn updates_of_the_parameters_reach_the_products() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let experts = experts([16, 24], kind);
        let (x, ends) = rows(16, kind);
        let inference = || tch::no_grad(|| experts.forward(&x, &ends));
        let before = inference();
        for parameter in experts.parameters() {
            let _ = tch::no_grad(|| parameter.master.shallow_clone().g_mul_scalar_(2.0));
        }
        if kind == Kind::BFloat16 {
            assert_eq!(inference(), before);
        }
        let learner = experts.forward(&x, &ends).detach();
        experts.parameters().for_each(Parameter::publish);
        assert_eq!(inference(), learner);
        assert_ne!(learner, before);
    }
}
