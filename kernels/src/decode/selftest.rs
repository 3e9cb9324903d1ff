//! Kernels against references, on this machine's card: fresh random inputs, outputs filled with NaN beforehand,
//! everything run twice and compared bit by bit.

mod drawing;

use tch::{Device, Kind, Tensor};

use super::attention::{self, Cache, Heads, NewTokens, Rope};
use super::experts::{self, Gating};
use super::rows;
use super::sampling::Truncation;
use super::small_products::{Epilogue, Shape, small_product, small_product_reference};
use crate::cuda::Queue;
use crate::error::KernelError;

/// Largest difference of a bf16 result over the largest number in it: two roundings.
const BF16_LIMIT: f64 = 0.008;
const F32_LIMIT: f64 = 1e-5;

/// What came of one operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Operation and shape.
    pub name: String,
    /// Largest difference from the reference over the largest number in it.
    pub difference: f64,
    /// Largest that passes.
    pub limit: f64,
    /// Both runs wrote the same bits.
    pub is_repeatable: bool,
}

impl Outcome {
    /// Whether the operation may be used.
    pub fn has_passed(&self) -> bool {
        self.is_repeatable && self.difference <= self.limit
    }
}

struct Test<'a> {
    queue: &'a Queue,
    device: Device,
    outcomes: Vec<Outcome>,
}

/// Tests every operation of a decode step on the card behind `device`.
///
/// # Errors
/// No CUDA, a kernel that does not compile, or a refusal of the driver.
pub fn run(device: Device, seed: i64) -> Result<Vec<Outcome>, KernelError> {
    let queue = Queue::new(device)?;
    let mut test = Test {
        queue: &queue,
        device,
        outcomes: Vec::new(),
    };
    tch::manual_seed(seed);
    let _guard = tch::no_grad_guard();
    for (batch, width) in [(1, 8), (7, 576), (64, 2048)] {
        test.rows(batch, width)?;
    }
    for (heads, batch, longest) in [
        ([9, 3, 64], 5, 300),
        ([4, 4, 16], 3, 50),
        ([8, 1, 128], 2, 1000),
        ([6, 2, 256], 33, 40),
        ([9, 3, 64], 70, 700),
    ] {
        let [queries, keys, dim] = heads;
        test.attention(Heads { queries, keys, dim }, batch, longest)?;
    }
    for (batch, width, experts, top_k) in [(5, 576, 4, 2), (3, 64, 64, 8), (2, 128, 256, 1)] {
        test.experts(batch, [width, experts, top_k])?;
    }
    for (batch, inner, columns) in [
        (1, 64, 40),
        (7, 576, 960),
        (32, 576, 1536),
        (32, 1536, 576),
        (17, 2048, 104),
        (64, 576, 1536),
        (50, 1536, 576),
    ] {
        test.small_products(batch, inner, columns)?;
    }
    for (batch, vocab) in [(3, 264), (16, 49_152), (2, 151_936)] {
        test.sampling(batch, vocab)?;
    }
    for (batch, vocab, [top_k, percent, min_p]) in [
        (3, 264, [5, 100, 0]),
        (3, 264, [0, 90, 0]),
        (16, 49_152, [0, 95, 0]),
        (16, 49_152, [50, 95, 0]),
        (4, 49_152, [0, 100, 1]),
        (2, 151_936, [1000, 99, 0]),
    ] {
        let truncation = Truncation {
            top_k,
            top_p: percent as f64 / 100.0,
            min_p: min_p as f64 / 100.0,
        };
        test.truncated_sampling(batch, vocab, truncation)?;
    }
    test.products()?;
    Ok(test.outcomes)
}

impl Test<'_> {
    fn random(&self, shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, self.device)).to_kind(Kind::BFloat16)
    }

    /// Runs `work`, which returns what it wrote, twice, and compares it with `references`.
    fn check(
        &mut self,
        name: String,
        limit: f64,
        references: &[Tensor],
        work: impl Fn() -> Result<Vec<Tensor>, KernelError>,
    ) -> Result<(), KernelError> {
        let run = || {
            let written = work()?;
            self.queue.wait()?;
            Ok::<_, KernelError>(written)
        };
        let (first, second) = (run()?, run()?);
        let is_repeatable = first.iter().zip(&second).all(|(a, b)| a.equal(b));
        let differences = first.iter().zip(references).map(|(a, b)| {
            let [a, b] = [a, b].map(|x| x.to_kind(Kind::Double));
            let largest = b.abs().max().double_value(&[]).max(1e-30);
            let difference = (a - b).abs().max().double_value(&[]) / largest;
            // NaN is no small difference.
            if difference.is_nan() {
                f64::INFINITY
            } else {
                difference
            }
        });
        let difference = differences.fold(0.0, f64::max);
        self.outcomes.push(Outcome {
            name,
            difference,
            limit,
            is_repeatable,
        });
        Ok(())
    }

    fn rows(&mut self, batch: i64, width: i64) -> Result<(), KernelError> {
        let (queue, device) = (self.queue, self.device);
        let [x, y] = [(); 2].map(|()| self.random(&[batch, width]));
        let weight = self.random(&[width]);
        let shape = format!("{batch} x {width}");
        let table = self.random(&[100, width]);
        let drawn = Tensor::randint(100, [batch], (Kind::Int, device));
        // Ids, and rows of `drawn` as -1 - r.
        let tokens = Tensor::randint_low(-batch, 100, [batch], (Kind::Int, device));
        let reference = [rows::embed_reference(&table, &tokens, &drawn)];
        self.check(format!("embed {shape}"), 0.0, &reference, || {
            let out = poison(&[batch, width], Kind::BFloat16, device);
            queue.follow_default_stream()?;
            rows::embed(queue, &table, &tokens, &drawn, &out)?;
            Ok(vec![out])
        })?;
        for (what, other) in [("alone", None), ("with y", Some(&y))] {
            let (sum, h) = rows::add_rms_norm_reference(&x, other, &weight, 1e-5);
            let name = format!("add_rms_norm {shape} {what}");
            self.check(name, BF16_LIMIT, &[sum, h], || {
                let (x, h) = (x.copy(), poison(&x.size(), Kind::BFloat16, device));
                queue.follow_default_stream()?;
                rows::add_rms_norm(queue, &x, other, &weight, 1e-5, &h)?;
                Ok(vec![x, h])
            })?;
        }
        let both = self.random(&[3, batch, 2 * width]);
        let reference = [rows::swiglu_reference(&both)];
        self.check(
            format!("swiglu 3 x {shape}"),
            BF16_LIMIT,
            &reference,
            || {
                let out = poison(&[3, batch, width], Kind::BFloat16, device);
                queue.follow_default_stream()?;
                rows::swiglu(queue, &both, &out)?;
                Ok(vec![out])
            },
        )
    }

    fn small_products(&mut self, batch: i64, inner: i64, columns: i64) -> Result<(), KernelError> {
        let (queue, device) = (self.queue, self.device);
        let x = self.random(&[batch, inner]);
        let norm_weight = self.random(&[inner]);
        let before = self.random(&[batch, columns]);
        for (epilogue, rows) in [
            (Epilogue::Plain, columns),
            (Epilogue::Added, columns),
            (Epilogue::Gated, 2 * columns),
        ] {
            let weight = self.random(&[rows, inner]) * (inner as f64).powf(-0.5);
            for norm in [None, Some((&norm_weight, 1e-5))] {
                let shape = Shape {
                    rows: batch,
                    inner,
                    columns,
                    is_normed: norm.is_some(),
                    epilogue,
                };
                if !shape.is_supported() {
                    continue;
                }
                let reference = [small_product_reference(
                    &x, &weight, norm, epilogue, &before,
                )];
                let name = format!("product of few rows {shape:?}");
                self.check(name, BF16_LIMIT, &reference, || {
                    let out = match epilogue {
                        Epilogue::Added => before.copy(),
                        Epilogue::Plain | Epilogue::Gated => {
                            poison(&[batch, columns], Kind::BFloat16, device)
                        }
                    };
                    queue.follow_default_stream()?;
                    small_product(queue, &x, &weight, norm, epilogue, &out)?;
                    Ok(vec![out])
                })?;
            }
        }
        Ok(())
    }

    /// The last row is padding, the first has no past. Pages lie in any order; entries that are not read lead nowhere.
    fn attention(&mut self, heads: Heads, batch: i64, longest: i64) -> Result<(), KernelError> {
        let (queue, device) = (self.queue, self.device);
        // Of four tokens in one case: fewer than a warp attends to at once.
        let page = if heads.dim == 16 { 4 } else { 32 };
        let width = longest / page + 1;
        let num_pages = batch * width;
        let shape = [num_pages * page, heads.keys, heads.dim];
        let [k, v] = [(); 2].map(|()| self.random(&shape));
        let qkv = self.random(&[batch, heads.qkv_width()]);
        let bias = self.random(&[heads.qkv_width()]);
        let positions = Tensor::randint_low(1, longest, [batch], (Kind::Int, device));
        let _ = positions.get(0).fill_(0);
        if batch > 1 {
            let _ = positions.get(batch - 1).fill_(-1);
        }
        let table = Tensor::randperm(num_pages, (Kind::Int64, device)).view([batch, width]);
        let last = positions.divide_scalar_mode(page, "floor").unsqueeze(1);
        let columns = Tensor::arange(width, (Kind::Int, device)).unsqueeze(0);
        let table = table.masked_fill(&columns.gt_tensor(&last), i64::from(i32::MAX));
        let table = table.to_kind(Kind::Int);
        let rope = Rope {
            frequencies: Tensor::rand([heads.dim / 2], (Kind::Float, device)),
            factor: 1.25,
        };
        let name = format!("{heads:?}, {batch} sequences of up to {longest}");
        for (what, bias) in [("", None), (" with bias", Some(&bias))] {
            let new = NewTokens {
                qkv: &qkv,
                bias,
                rope: &rope,
                positions: &positions,
            };
            let copies = [k.copy(), v.copy()];
            let cache = Cache {
                k: &copies[0],
                v: &copies[1],
                table: &table,
                page,
            };
            let attended = attention::attend_reference(heads, new, cache, 0.2);
            let references = [attended, copies[0].copy(), copies[1].copy()];
            self.check(
                format!("attention{what} {name}"),
                BF16_LIMIT,
                &references,
                || {
                    let (k, v) = (k.copy(), v.copy());
                    let out = poison(&[batch, heads.queries * heads.dim], Kind::BFloat16, device);
                    queue.follow_default_stream()?;
                    let cache = Cache {
                        k: &k,
                        v: &v,
                        table: &table,
                        page,
                    };
                    attention::attend(queue, heads, new, cache, 0.2, &out)?;
                    Ok(vec![out, k, v])
                },
            )?;
        }
        Ok(())
    }

    fn experts(&mut self, batch: i64, [width, count, top_k]: [i64; 3]) -> Result<(), KernelError> {
        let (queue, device) = (self.queue, self.device);
        let (x, outputs) = (
            self.random(&[batch, width]),
            self.random(&[count, batch, width]),
        );
        let gate = Tensor::randn([count, width], (Kind::Float, device)) * 0.1;
        let bias = Tensor::randn([count], (Kind::Float, device));
        for (is_sigmoid, bias) in [(false, None), (true, Some(&bias))] {
            let gating = Gating {
                top_k,
                is_sigmoid,
                normalise: true,
                scaling: 1.5,
            };
            let (gates, ids) = experts::route_reference(gating, &x, &gate, bias);
            let name = format!("route and combine {batch} x {width}, {top_k} of {count}");
            let y = experts::combine_reference(&outputs, &gates);
            self.check(name, BF16_LIMIT, &[gates, ids, y], || {
                let gates = poison(&[batch, count], Kind::Float, device);
                let all_ids = poison(&[batch, 3, top_k], Kind::Int16, device);
                let y = poison(&[batch, width], Kind::BFloat16, device);
                let ids = all_ids.select(1, 1);
                queue.follow_default_stream()?;
                experts::route(queue, gating, &x, &gate, bias, &gates, &ids)?;
                experts::combine(queue, &outputs, &gates, &y)?;
                Ok(vec![gates, ids, y])
            })?;
        }
        Ok(())
    }

    fn products(&mut self) -> Result<(), KernelError> {
        let (queue, device) = (self.queue, self.device);
        let (x, weights) = (self.random(&[1, 5, 576]), self.random(&[4, 96, 576]));
        let reference = [x.matmul(&weights.transpose(1, 2))];
        self.check(
            "products of 4 weights".to_string(),
            BF16_LIMIT,
            &reference,
            || {
                let out = poison(&[4, 5, 96], Kind::BFloat16, device);
                queue.follow_default_stream()?;
                queue.products(&x, &weights, &out)?;
                Ok(vec![out])
            },
        )
    }
}

fn poison(shape: &[i64], kind: Kind, device: Device) -> Tensor {
    match kind {
        Kind::Float | Kind::BFloat16 => Tensor::full(shape, f64::NAN, (kind, device)),
        _ => Tensor::full(shape, 12_345, (kind, device)),
    }
}
