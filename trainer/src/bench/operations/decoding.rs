//! Operations of a decode step with all samples of a step under way.

use std::rc::Rc;

use kernels::cuda::Queue;
use kernels::decode::attention::{self, Cache, Heads, NewTokens, Rope};
use kernels::decode::sampling::{self, Truncation};
use kernels::tch::{self, Kind, Tensor};

use super::{Operation, Shapes};

const PAGE_TOKENS: i64 = model::pages::PAGE_TOKENS as i64;

/// RoPE with attention over the cache, and sampling, whole and truncated.
pub(super) fn all(shapes: &Shapes) -> Vec<Operation> {
    // Kernels of a decode step are made for bf16 on a GPU.
    let is_known = shapes.kind == Kind::BFloat16 && shapes.device.is_cuda();
    let queue = is_known.then(|| Queue::new(shapes.device).ok()).flatten();
    let queue = queue.map(Rc::new);
    let top_p = Truncation {
        top_k: 0,
        top_p: 0.95,
        min_p: 0.0,
    };
    let mut rows = vec![
        draws(shapes, queue.as_ref(), None),
        draws(shapes, queue.as_ref(), Some(top_p)),
    ];
    if shapes.config.mla.is_none() {
        rows.insert(0, cached_attention(shapes, queue.as_ref()));
    }
    rows
}

fn cached_attention(shapes: &Shapes, queue: Option<&Rc<Queue>>) -> Operation {
    let config = shapes.config;
    let heads = Heads {
        queries: config.num_attention_heads as i64,
        keys: config.num_key_value_heads as i64,
        dim: config.head_dim as i64,
    };
    let batch = shapes.shape.samples() as i64;
    let len = (shapes.shape.prompt_tokens + shapes.shape.new_tokens) as i64;
    let Heads { queries, keys, dim } = heads;
    let qkv = shapes.random(&[batch, heads.qkv_width()]);
    // As many whole pages a sequence as it needs, one sequence behind the other.
    let pages = (len + PAGE_TOKENS - 1) / PAGE_TOKENS;
    let room = pages * PAGE_TOKENS;
    let cache = [(); 2].map(|()| shapes.random(&[batch * room, keys, dim]));
    let scale = (dim as f64).powf(-0.5);
    let pairs = (batch * len) as f64;
    let numbers = 2 * batch * (len * keys + queries) * dim;
    let q = qkv.narrow(1, 0, queries * dim);
    let q = q.reshape([batch, queries, 1, dim]);
    let [k, v] = cache.each_ref().map(|rows| {
        let rows = rows.view([batch, room, keys, dim]).narrow(1, 0, len);
        rows.transpose(1, 2)
    });
    let fused = queue.filter(|_| heads.are_supported()).map(|queue| {
        let positions = Tensor::full([batch], len - 1, (Kind::Int, shapes.device));
        let out = Tensor::zeros([batch, queries * dim], (shapes.kind, shapes.device));
        let table = Tensor::arange(batch * pages, (Kind::Int, shapes.device)).view([batch, pages]);
        let rope = Rope {
            frequencies: Tensor::zeros([dim / 2], (Kind::Float, shapes.device)),
            factor: 1.0,
        };
        let queue = queue.clone();
        let run = move || {
            let new = NewTokens {
                qkv: &qkv,
                bias: None,
                rope: &rope,
                positions: &positions,
            };
            let cache = Cache {
                table: &table,
                page: PAGE_TOKENS,
                k: &cache[0],
                v: &cache[1],
            };
            attention::attend(&queue, heads, new, cache, scale, &out).expect("sizes fit");
        };
        Box::new(run) as Box<dyn Fn()>
    });
    let is_grouped = queries != keys;
    Operation {
        name: format!("cached attention, {batch} over {len}"),
        work: shapes.work(4.0 * pairs * (queries * dim) as f64, numbers),
        fused,
        plain: Some(Box::new(move || {
            let none = None::<&Tensor>;
            drop(tch::no_grad(|| {
                Tensor::scaled_dot_product_attention(
                    &q, &k, &v, none, 0.0, false, scale, is_grouped,
                )
            }));
        })),
    }
}

fn draws(shapes: &Shapes, queue: Option<&Rc<Queue>>, truncation: Option<Truncation>) -> Operation {
    let (batch, vocab) = (
        shapes.shape.samples() as i64,
        shapes.config.vocab_size as i64,
    );
    let logits = shapes.random(&[batch, vocab]);
    let draws = Tensor::rand([batch], (Kind::Double, shapes.device));
    let numbers = batch * vocab;
    let fused = queue.filter(|_| vocab % 8 == 0).map(|queue| {
        let (queue, logits, draws) = (queue.clone(), logits.shallow_clone(), draws.copy());
        let tokens = Tensor::zeros([batch], (Kind::Int, shapes.device));
        let [logprobs, entropies] =
            [(); 2].map(|()| Tensor::zeros([batch], (Kind::Float, shapes.device)));
        let kept = Tensor::zeros([batch, (vocab + 31) / 32], (Kind::Int, shapes.device));
        let run = move || {
            let rows = sampling::Rows {
                logits: &logits,
                draws: &draws,
                tokens: &tokens,
                logprobs: &logprobs,
                entropies: &entropies,
            };
            match truncation {
                None => sampling::sample(&queue, rows, None, 1.0),
                Some(truncation) => {
                    sampling::sample_truncated(&queue, rows, None, 1.0, truncation, &kept)
                }
            }
            .expect("sizes fit");
        };
        Box::new(run) as Box<dyn Fn()>
    });
    Operation {
        name: match truncation {
            None => format!("sampling {batch}x{vocab}"),
            Some(Truncation { top_p, .. }) => format!("sampling {batch}x{vocab}, top_p {top_p}"),
        },
        work: shapes.work(0.0, numbers),
        fused,
        plain: truncation.is_none().then(|| {
            Box::new(move || {
                tch::no_grad(|| {
                    let all = logits.log_softmax(-1, Kind::Float);
                    let probabilities = all.exp();
                    let entropies =
                        -(&probabilities * &all).sum_dim_intlist(-1, false, Kind::Float);
                    let sums = probabilities.cumsum(-1, Kind::Double);
                    let tokens = draws
                        .unsqueeze(1)
                        .searchsorted(&sums, false, true, "right", None::<&Tensor>)
                        .clamp_max(vocab - 1);
                    drop((all.gather(1, &tokens, false), entropies));
                });
            }) as Box<dyn Fn()>
        }),
    }
}
