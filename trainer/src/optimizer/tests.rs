//! Steps checked against PyTorch 2.11's `torch.optim.AdamW` with `clip_grad_norm_`, and by hand.

use super::*;

fn config() -> OptimizerConfig {
    OptimizerConfig {
        weight_decay: 0.1,
        ..OptimizerConfig::default()
    }
}

fn parameter(name: &str, group: ParameterGroup, shape: &[i64], values: &[f32]) -> Parameter {
    let master = Tensor::from_slice(values)
        .view(shape)
        .set_requires_grad(true);
    Parameter::new(name, group, master, Kind::Float)
}

/// Matrix and vector of the language model.
fn main_parameters() -> Vec<Parameter> {
    vec![
        parameter(
            "matrix",
            ParameterGroup::Main,
            &[2, 2],
            &[0.5, -1.0, 2.0, 0.25],
        ),
        parameter("vector", ParameterGroup::Main, &[2], &[1.0, -0.5]),
    ]
}

fn set_grad(parameter: &Parameter, grad: &[f32]) {
    let grad = Tensor::from_slice(grad).view(&parameter.master.size()[..]);
    (&parameter.master * grad).sum(Kind::Float).backward();
}

fn step(optimizer: &mut AdamW, parameters: &[Parameter]) -> Result<StepNorms, OptimizerError> {
    optimizer.step(&parameters.iter().collect::<Vec<_>>(), 0.05)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::<f32>::try_from(tensor.detach().view([-1])).unwrap()
}

fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() < 1e-6, "{found:?} against {expected:?}");
    }
}

fn named(state: &[(String, Tensor)], name: &str) -> Tensor {
    let (_, tensor) = state.iter().find(|(n, _)| n == name).unwrap();
    tensor.shallow_clone()
}

#[test]
fn three_steps_equal_pytorch() {
    let grads = [
        ([3.0, -4.0, 0.0, 0.0], [0.0, 0.0]),
        ([0.1, 0.2, -0.3, 0.4], [0.5, -0.1]),
        ([-0.5, 0.25, 0.125, -1.0], [0.2, 0.3]),
    ];
    let expected = [
        (5.0, [0.4475, -0.945, 1.99, 0.24875], [1.0, -0.5]),
        (
            0.748_331_5,
            [0.405_621_7, -0.916_536_7, 2.016_798, 0.210_758_24],
            [0.963_252, -0.463_252],
        ),
        (
            1.207_528_5,
            [0.396_498_92, -0.901_932_54, 2.023_439, 0.225_641_7],
            [0.925_981_64, -0.481_751_98],
        ),
    ];
    let parameters = main_parameters();
    let mut optimizer = AdamW::new(&config());
    for ((matrix_grad, vector_grad), (norm, matrix, vector)) in grads.iter().zip(&expected) {
        set_grad(&parameters[0], matrix_grad);
        set_grad(&parameters[1], vector_grad);
        let norms = step(&mut optimizer, &parameters).unwrap();
        assert_close(&[norms.main as f32, norms.indexer as f32], &[*norm, 0.0]);
        assert_close(&values(&parameters[0].master), matrix);
        assert_close(&values(&parameters[1].master), vector);
    }
    let state = optimizer.state();
    let exp_avg = [
        0.016_193_137,
        -0.026_096_558,
        -0.016_648_287,
        -0.046_813_715,
    ];
    assert_close(&values(&named(&state, "exp_avg.matrix")), &exp_avg);
    let exp_avg_sq = [0.025_292_633, 0.032_923_147, 0.004_810_79, 0.041_890_558];
    assert_close(&values(&named(&state, "exp_avg_sq.matrix")), &exp_avg_sq);
}

/// A parameter of each group.
fn both_groups() -> Vec<Parameter> {
    vec![
        parameter("model", ParameterGroup::Main, &[2], &[1.0, 1.0]),
        parameter("indexer", ParameterGroup::Indexer, &[2], &[1.0, 1.0]),
    ]
}

#[test]
fn groups_are_clipped_apart() {
    let parameters = both_groups();
    let mut optimizer = AdamW::new(&config());
    set_grad(&parameters[0], &[30.0, 40.0]);
    set_grad(&parameters[1], &[0.3, 0.4]);
    let norms = step(&mut optimizer, &parameters).unwrap();
    assert_close(&[norms.main as f32, norms.indexer as f32], &[50.0, 0.5]);
    let state = optimizer.state();
    // Scaled to norm 1, and left alone; then times 1 - beta1.
    assert_close(&values(&named(&state, "exp_avg.model")), &[0.06, 0.08]);
    assert_close(&values(&named(&state, "exp_avg.indexer")), &[0.03, 0.04]);
}

#[test]
fn frozen_group_stays_and_its_gradient_is_dropped() {
    let parameters = both_groups();
    let mut optimizer = AdamW::new(&config());
    set_grad(&parameters[0], &[1.0, 1.0]);
    set_grad(&parameters[1], &[1.0, f32::NAN]);
    let _ = parameters[1].master.set_requires_grad(false);
    let norms = step(&mut optimizer, &parameters).unwrap();
    assert_eq!(norms.indexer, 0.0);
    assert_eq!(values(&parameters[1].master), [1.0, 1.0]);
    assert!(!parameters[1].master.grad().defined());
    let state = optimizer.state();
    assert_eq!(named(&state, "main.steps").int64_value(&[0]), 1);
    assert_eq!(named(&state, "indexer.steps").int64_value(&[0]), 0);
    assert_eq!(state.len(), 4);
}

#[test]
fn gradients_are_gone_after_a_step_and_the_next_ones_arrive() {
    let parameters = main_parameters();
    let mut optimizer = AdamW::new(&config());
    set_grad(&parameters[0], &[1.0; 4]);
    step(&mut optimizer, &parameters).unwrap();
    assert!(!parameters[0].master.grad().defined());
    set_grad(&parameters[0], &[2.0; 4]);
    assert_eq!(values(&parameters[0].master.grad()), [2.0; 4]);
    // The copy that inference reads follows the master.
    let weight = kernels::tch::no_grad(|| parameters[0].weight());
    assert_eq!(values(&weight), values(&parameters[0].master));
}

#[test]
fn parameter_without_gradient_keeps_value_and_moments() {
    let parameters = main_parameters();
    let mut optimizer = AdamW::new(&config());
    set_grad(&parameters[0], &[1.0; 4]);
    step(&mut optimizer, &parameters).unwrap();
    let matrix = values(&parameters[0].master);
    set_grad(&parameters[1], &[1.0; 2]);
    step(&mut optimizer, &parameters).unwrap();
    assert_eq!(values(&parameters[0].master), matrix);
    let exp_avg = named(&optimizer.state(), "exp_avg.matrix");
    assert_close(&values(&exp_avg), &[0.05; 4]);
}

#[test]
fn step_without_any_gradient_changes_nothing() {
    let parameters = main_parameters();
    let mut optimizer = AdamW::new(&config());
    let norms = step(&mut optimizer, &parameters).unwrap();
    assert_eq!(norms, StepNorms::default());
    assert_eq!(named(&optimizer.state(), "main.steps").int64_value(&[0]), 0);
}

#[test]
fn weight_decay_shrinks_matrices_only() {
    let parameters = main_parameters();
    let mut optimizer = AdamW::new(&config());
    set_grad(&parameters[0], &[0.0; 4]);
    set_grad(&parameters[1], &[0.0; 2]);
    step(&mut optimizer, &parameters).unwrap();
    // 1 - lr wd = 0.995
    let matrix = [0.4975, -0.995, 1.99, 0.24875];
    assert_close(&values(&parameters[0].master), &matrix);
    assert_eq!(values(&parameters[1].master), [1.0, -0.5]);
}

#[test]
fn non_finite_gradient_is_named_and_nothing_is_updated() {
    for bad in [f32::NAN, f32::INFINITY] {
        let parameters = both_groups();
        let mut optimizer = AdamW::new(&config());
        set_grad(&parameters[0], &[1.0, 2.0]);
        set_grad(&parameters[1], &[1.0, bad]);
        let error = step(&mut optimizer, &parameters).unwrap_err();
        let OptimizerError::NonFinite {
            group, parameter, ..
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!(
            (group, &parameter[..]),
            (ParameterGroup::Indexer, "indexer")
        );
        assert_eq!(values(&parameters[0].master), [1.0, 1.0]);
        assert_eq!(optimizer.state().len(), 2);
    }
}

#[test]
fn restored_state_continues_bit_for_bit() {
    let parameters = main_parameters();
    let mut optimizer = AdamW::new(&config());
    set_grad(&parameters[0], &[0.1, 0.2, 0.3, 0.4]);
    set_grad(&parameters[1], &[0.5, 0.6]);
    step(&mut optimizer, &parameters).unwrap();

    let state: Vec<(String, Tensor)> = optimizer
        .state()
        .into_iter()
        .map(|(name, tensor)| (name, tensor.copy()))
        .collect();
    let copies = main_parameters();
    for (copy, original) in copies.iter().zip(&parameters) {
        kernels::tch::no_grad(|| copy.master.shallow_clone().copy_(&original.master));
    }
    let mut restored = AdamW::new(&config());
    restored
        .load_state(state, &copies.iter().collect::<Vec<_>>())
        .unwrap();

    for (optimizer, parameters) in [(&mut optimizer, &parameters), (&mut restored, &copies)] {
        set_grad(&parameters[0], &[-0.4, 0.1, 0.0, 0.9]);
        set_grad(&parameters[1], &[0.1, -0.2]);
        step(optimizer, parameters).unwrap();
    }
    for (copy, original) in copies.iter().zip(&parameters) {
        assert_eq!(values(&copy.master), values(&original.master));
    }
}

#[test]
fn state_of_another_model_is_refused() {
    let parameters = main_parameters();
    let all: Vec<&Parameter> = parameters.iter().collect();
    let zeros = |n: i64| Tensor::zeros([n], (Kind::Float, parameters[0].master.device()));
    let refused = |extra: Vec<(&str, Tensor)>| {
        let mut optimizer = AdamW::new(&config());
        let mut state = optimizer.state();
        state.extend(extra.into_iter().map(|(name, t)| (name.to_string(), t)));
        optimizer.load_state(state, &all).unwrap_err().to_string()
    };
    let unknown = refused(vec![("exp_avg.other", zeros(2))]);
    assert!(
        unknown.contains("'exp_avg.other': the model has no such"),
        "{unknown}"
    );
    let shape = refused(vec![("exp_avg.vector", zeros(3))]);
    assert!(shape.contains("Float [3] in place of Float [2]"), "{shape}");
    let half = refused(vec![("exp_avg.vector", zeros(2))]);
    assert!(half.contains("one of its two moments is missing"), "{half}");
    let missing = AdamW::new(&config())
        .load_state(Vec::new(), &all)
        .unwrap_err();
    assert!(
        missing.to_string().contains("'main.steps': it is missing"),
        "{missing}"
    );
}
