//! The operations of this crate on a GPU; every test says so and stops where there is none.
//!
//! On a GPU libtorch runs backward passes on threads of its own and takes other code paths for
//! top-k, foreach and fused operations. Values are compared with those of the CPU.

use std::cell::Cell;
use std::rc::Rc;

use tch::{Device, Kind, Tensor};

use crate::{autograd, dsa, foreach, runtime};

fn gpu() -> Option<Device> {
    let device = runtime::start(1).device;
    if device == Device::Cpu {
        eprintln!("SKIPPED: no GPU");
        return None;
    }
    Some(device)
}

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

fn max_difference(a: &Tensor, b: &Tensor) -> f64 {
    (a.to_device(Device::Cpu) - b.to_device(Device::Cpu))
        .abs()
        .max()
        .double_value(&[])
}

#[test]
fn checkpoint_on_the_gpu_reaches_captured_parameters() {
    let Some(device) = gpu() else { return };
    let weight = Rc::new(Tensor::from_slice(&[3.0_f32]).to_device(device));
    let weight = Rc::new(weight.detach().set_requires_grad(true));
    let runs = Rc::new(Cell::new(0));
    for expected in [1, 2, 3] {
        let (captured, counter) = (weight.clone(), runs.clone());
        let x = Tensor::from_slice(&[4.0_f32]).to_device(device);
        let out = autograd::checkpoint(&[x], move |x| {
            counter.set(counter.get() + 1);
            vec![&x[0] * &*captured * &*captured]
        });
        autograd::backward(&out, &[]).unwrap();
        assert_eq!(weight.grad().double_value(&[0]), 24.0 * f64::from(expected));
        // The closure is gone when backward() returns.
        assert_eq!((Rc::strong_count(&weight), runs.get()), (1, 2 * expected));
    }
}

#[test]
fn panic_on_a_gpu_thread_becomes_an_error() {
    let Some(device) = gpu() else { return };
    let x = Tensor::from_slice(&[2.0_f32])
        .to_device(device)
        .set_requires_grad(true);
    let out = autograd::custom(vec![x.detach() * 1.0], &[&x], |_| panic!("not today")).unwrap();
    let error = autograd::backward(&out, &[]).unwrap_err().to_string();
    assert!(error.contains("not today"), "{error}");
}

#[test]
fn fused_adamw_on_the_gpu_equals_the_cpu() {
    let Some(device) = gpu() else { return };
    let (start, grads) = (random(&[50, 7]), random(&[50, 7]));
    let [cpu, gpu] = [Device::Cpu, device].map(|device| {
        let param = [start.copy().to_device(device)];
        let (m, v) = ([param[0].zeros_like()], [param[0].zeros_like()]);
        for step in 1..=3 {
            let grads = [&grads.to_device(device) * step as f64];
            let norm = foreach::global_norm(&grads).unwrap().double_value(&[]);
            foreach::scale_(&grads, 1.0 / norm).unwrap();
            foreach::fused_adamw_(&param, &grads, &m, &v, step, 0.1, 0.9, 0.95, 0.1, 1e-8).unwrap();
        }
        let [param] = param;
        param
    });
    assert!(max_difference(&cpu, &gpu) < 1e-5);
}

#[test]
fn sparse_attention_on_the_gpu_equals_the_cpu() {
    let Some(device) = gpu() else { return };
    tch::manual_seed(9);
    let (index_q, weights, index_k) = (random(&[60, 4, 8]), random(&[60, 4]), random(&[60, 8]));
    let inputs = [[60, 6, 8], [60, 3, 8], [60, 3, 8]].map(|shape| random(&shape));
    let starts = Tensor::zeros([60], (Kind::Int64, Device::Cpu));
    // Rounded scores have ties, which must be broken alike.
    let mut scores = (dsa::index_scores(&index_q, &weights, &index_k) * 2.0).round();
    dsa::mask_invisible_(&mut scores, 0, 60, &starts);
    let on_gpu = dsa::index_scores(
        &index_q.to_device(device),
        &weights.to_device(device),
        &index_k.to_device(device),
    );
    let mut on_gpu_masked = on_gpu.copy();
    dsa::mask_invisible_(&mut on_gpu_masked, 0, 60, &starts.to_device(device));
    let exact = dsa::index_scores(&index_q, &weights, &index_k);
    assert!(max_difference(&on_gpu, &exact) < 1e-4);
    assert_eq!(on_gpu_masked.isinf().to_device(Device::Cpu), scores.isinf());

    for topk in [4, 20] {
        let selected = dsa::select_topk(&scores, topk);
        let selected_on_gpu = dsa::select_topk(&scores.to_device(device), topk);
        assert_eq!(selected_on_gpu.to_device(Device::Cpu), selected);
        for tile in [16, 1000] {
            let [cpu, gpu] = [Device::Cpu, device].map(|device| {
                let leaves = inputs
                    .each_ref()
                    .map(|x| x.to_device(device).copy().set_requires_grad(true));
                let selected = selected.to_device(device);
                let attended =
                    dsa::attend_selected(&leaves[0], &leaves[1], &leaves[2], &selected, 0.3, tile);
                let output = attended.output.detach();
                autograd::backward(&[attended.output.square().sum(Kind::Float)], &[]).unwrap();
                let [q, k, v] = leaves.map(|leaf| leaf.grad());
                [output, attended.head_probs_sum, q, k, v]
            });
            for (a, b) in cpu.iter().zip(&gpu) {
                assert!(max_difference(a, b) < 1e-4);
            }
        }
    }
}

/// Millions of numbers in one tensor, and a tensor that is part of another.
#[test]
fn global_norm_on_the_gpu_equals_that_in_f64() {
    let Some(device) = gpu() else { return };
    let tensors = [
        random(&[3_000_001]) + 0.5,
        random(&[40, 24]).narrow(1, 8, 8),
    ];
    let squares = tensors.each_ref().map(|x| x.to_kind(Kind::Double).square());
    let expected = squares.map(|x| x.sum(Kind::Double).double_value(&[]));
    let expected = expected.iter().sum::<f64>().sqrt();
    let tensors = tensors.map(|x| x.to_device(device));
    let found = foreach::global_norm(&tensors).unwrap().double_value(&[]);
    assert!(
        (found / expected - 1.0).abs() < 1e-6,
        "{found} of {expected}"
    );
}
