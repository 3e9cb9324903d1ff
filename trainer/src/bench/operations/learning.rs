//! Operations of a learner's pass over a micro-batch of groups.

use std::rc::Rc;

use kernels::autograd;
use kernels::fused::dispatch::Dispatch;
use kernels::fused::logprobs::{Head, token_logprobs};
use kernels::fused::rope::{RotatedHeads, rope_and_gather, rope_and_gather_reference};
use kernels::fused::varlen::{VarlenPlan, VarlenSequence, attend, attend_reference};
use kernels::fused::{norm, runs_on, swiglu as gated};
use kernels::tch::{self, Kind, Tensor};

use super::super::work::{self, Work};
use super::{Operation, Run, Shapes};

/// Rows of logits alive at once in libtorch's log-probs.
const PLAIN_HEAD_ROWS: i64 = 2048;

type Forward = Rc<dyn Fn(&[Tensor]) -> Vec<Tensor>>;

fn forward(of: impl Fn(&[Tensor]) -> Vec<Tensor> + 'static) -> Option<Forward> {
    Some(Rc::new(of))
}

/// Two rows: forward, then forward and backward with respect to `leaves`.
fn both_ways(
    name: &str,
    [one_way, both]: [Work; 2],
    leaves: &[Tensor],
    [fused, plain]: [Option<Forward>; 2],
) -> Vec<Operation> {
    let is_known = leaves.iter().any(runs_on);
    let row = |name: String, work: Work, run: &dyn Fn(&Forward) -> Run| Operation {
        name,
        work,
        fused: fused.as_ref().filter(|_| is_known).map(run),
        plain: plain.as_ref().map(run),
    };
    vec![
        row(format!("{name}, forward"), one_way, &|of| {
            one_way_run(of, leaves)
        }),
        row("  forward and backward".to_string(), both, &|of| {
            both_ways_run(of, leaves)
        }),
    ]
}

fn copies(tensors: &[Tensor]) -> Vec<Tensor> {
    tensors.iter().map(Tensor::shallow_clone).collect()
}

fn one_way_run(of: &Forward, leaves: &[Tensor]) -> Run {
    let (of, leaves) = (of.clone(), copies(leaves));
    Box::new(move || drop(tch::no_grad(|| of(&leaves))))
}

fn both_ways_run(of: &Forward, leaves: &[Tensor]) -> Run {
    let (of, leaves) = (of.clone(), copies(leaves));
    let outputs = tch::no_grad(|| of(&leaves));
    let grads: Vec<Tensor> = outputs.iter().map(Tensor::ones_like).collect();
    Box::new(move || {
        let outputs = of(&leaves);
        let found = autograd::grad(&outputs, &grads, &leaves);
        drop(found.expect("outputs depend on leaves"));
    })
}

/// Projections of the attention and the feed-forward.
pub(super) fn products(shapes: &Shapes) -> Vec<Operation> {
    let config = shapes.config;
    let (hidden, rows) = (config.hidden_size as i64, shapes.rows());
    let heads = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim;
    let width = config.intermediate_size as i64;
    let mut sizes = vec![(hidden, 2 * width), (width, hidden)];
    if config.mla.is_none() {
        sizes.insert(0, (hidden, heads as i64));
    }
    let of_size = |(inner, columns): (i64, i64)| {
        let size = [rows, inner, columns];
        let one_way = work::product(size, shapes.kind);
        let leaves = [shapes.leaf(&[rows, inner]), shapes.leaf(&[columns, inner])];
        let plain = forward(|x| vec![x[0].linear(&x[1], None::<&Tensor>)]);
        let name = format!("product {rows}x{inner}x{columns}");
        both_ways(&name, [one_way, one_way * 3.0], &leaves, [None, plain])
    };
    sizes.into_iter().flat_map(of_size).collect()
}

/// The norm behind a residual sum.
pub(super) fn norms(shapes: &Shapes) -> Vec<Operation> {
    let size = [shapes.rows(), shapes.config.hidden_size as i64];
    let leaves = [
        shapes.leaf(&size),
        shapes.leaf(&size),
        shapes.leaf(&size[1..]),
    ];
    let numbers = size[0] * size[1];
    // x, y, sum, h; then the sum, both gradients, and what comes of them.
    let works = [4, 8].map(|times| shapes.work(0.0, times * numbers));
    let both = |(sum, h): (Tensor, Tensor)| vec![sum, h];
    both_ways(
        &format!("sum and norm {}x{}", size[0], size[1]),
        works,
        &leaves,
        [
            forward(move |x| both(norm::add_rms_norm(&x[0], &x[1], &x[2], 1e-5))),
            forward(move |x| both(norm::add_rms_norm_reference(&x[0], &x[1], &x[2], 1e-5))),
        ],
    )
}

/// SwiGLU of a dense feed-forward.
pub(super) fn swiglu(shapes: &Shapes) -> Vec<Operation> {
    let (rows, width) = (shapes.rows(), shapes.config.intermediate_size as i64);
    let leaves = [shapes.leaf(&[rows, 2 * width])];
    let works = [3, 8].map(|times| shapes.work(0.0, times * rows * width));
    both_ways(
        &format!("swiglu {rows}x{width}"),
        works,
        &leaves,
        [
            forward(|x| vec![gated::swiglu(&x[0])]),
            forward(|x| vec![gated::swiglu_reference(&x[0])]),
        ],
    )
}

/// Documents of the step's shape that fill a micro-batch, and the query-key pairs of a head.
fn plan(shapes: &Shapes) -> (VarlenPlan, i64, f64) {
    let shape = shapes.shape;
    let (trunk, branch) = (shape.prompt_tokens as i64, shape.new_tokens as i64 - 1);
    let document = trunk + shape.group as i64 * branch;
    let (mut sequences, mut start, mut pairs) = (Vec::new(), 0, 0);
    // At least one, whatever fits beyond.
    while start == 0 || start + document <= shapes.rows() {
        let own = start..start + trunk;
        pairs += trunk * (trunk + 1) / 2;
        sequences.push(VarlenSequence {
            queries: own.clone(),
            keys: Vec::from([own.clone()]),
        });
        for sample in 0..shape.group as i64 {
            let first = own.end + sample * branch;
            pairs += branch * trunk + branch * (branch + 1) / 2;
            sequences.push(VarlenSequence {
                queries: first..first + branch,
                keys: vec![own.clone(), first..first + branch],
            });
        }
        start += document;
    }
    let plan = VarlenPlan::new(&sequences, start, shapes.device);
    (plan, start, pairs as f64)
}

/// RoPE with the gather of keys and values, and attention within the sequences of a pack.
pub(super) fn attention(shapes: &Shapes) -> Vec<Operation> {
    let config = shapes.config;
    if config.mla.is_some() {
        return Vec::new();
    }
    let [heads, kv_heads, dim] = [
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
    ]
    .map(|count| count as i64);
    let (plan, rows, pairs) = plan(shapes);
    let plan = Rc::new(plan);
    let gathered = plan.gathered_rows().size()[0];
    let angles = Tensor::rand([rows, dim], (Kind::Float, shapes.device));
    let tables = Rc::new([angles.cos(), angles.sin()].map(|x| x.to_kind(shapes.kind)));
    let states = {
        let plan = plan.clone();
        move |qkv: &Tensor, is_fused: bool| -> [Tensor; 3] {
            let heads = RotatedHeads {
                heads,
                kv_heads,
                cos: &tables[0],
                sin: &tables[1],
            };
            match is_fused {
                true => rope_and_gather(qkv, &heads, &plan),
                false => rope_and_gather_reference(qkv, &heads, &plan),
            }
        }
    };
    let qkv = shapes.leaf(&[rows, (heads + 2 * kv_heads) * dim]);
    let numbers = qkv.numel() as i64 + rows * heads * dim + 2 * gathered * kv_heads * dim;
    let rope = {
        let (fused, plain) = (states.clone(), states.clone());
        both_ways(
            &format!("rope and gather {rows} rows"),
            [1, 2].map(|times| shapes.work(0.0, times * numbers)),
            &[qkv.shallow_clone()],
            [
                forward(move |x| fused(&x[0], true).into()),
                forward(move |x| plain(&x[0], false).into()),
            ],
        )
    };
    let leaves = tch::no_grad(|| states(&qkv, runs_on(&qkv)))
        .map(|state| state.detach().set_requires_grad(true));
    let scale = (dim as f64).powf(-0.5);
    let flops = 4.0 * pairs * (heads * dim) as f64;
    let numbers = (2 * rows * heads + 2 * gathered * kv_heads) * dim;
    let plain_plan = plan.clone();
    let attended = both_ways(
        &format!("packed attention {rows} rows"),
        // Backward: scores again, and four products.
        [
            shapes.work(flops, numbers),
            shapes.work(3.5 * flops, 3 * numbers),
        ],
        &leaves,
        [
            forward(move |x| {
                let out = attend(&x[0], &x[1], &x[2], &plan, scale);
                vec![out.expect("flash attention knows bf16 heads of up to 256")]
            }),
            forward(move |x| vec![attend_reference(&x[0], &x[1], &x[2], &plain_plan, scale)]),
        ],
    );
    [rope, attended].into_iter().flatten().collect()
}

/// Log-probs of a target a row, from hidden states.
pub(super) fn head(shapes: &Shapes) -> Vec<Operation> {
    let config = shapes.config;
    let (hidden, vocab, rows) = (
        config.hidden_size as i64,
        config.vocab_size as i64,
        shapes.rows(),
    );
    let options = (Kind::Int64, shapes.device);
    let all = Rc::new(Tensor::arange(rows, options));
    let targets = Rc::new(Tensor::randint(vocab, [rows], options));
    let master = Tensor::randn([vocab, hidden], (Kind::Float, shapes.device)) * 0.1;
    let leaves = [shapes.leaf(&[rows, hidden]), master.set_requires_grad(true)];
    let flops = work::product([rows, hidden, vocab], shapes.kind).flops;
    let numbers = rows * hidden + vocab * hidden;
    let kind = shapes.kind;
    let (plain_rows, plain_targets) = (all.clone(), targets.clone());
    both_ways(
        &format!("log-prob head {rows}x{hidden}x{vocab}"),
        [
            shapes.work(flops, numbers),
            shapes.work(3.0 * flops, 3 * numbers),
        ],
        &leaves,
        [
            forward(move |x| {
                let head = Head {
                    weight: &x[1].detach().to_kind(kind),
                    master: &x[1],
                };
                let found = token_logprobs(&x[0], &head, &all, &targets, 1.0, None);
                vec![found.expect("asked before")]
            }),
            forward(move |x| {
                let weight = x[1].to_kind(kind);
                let chunk = |first: i64| {
                    let len = PLAIN_HEAD_ROWS.min(rows - first);
                    let own = x[0].index_select(0, &plain_rows.narrow(0, first, len));
                    let logits = own.linear(&weight, None::<&Tensor>).to_kind(Kind::Float);
                    let of_targets = plain_targets.narrow(0, first, len).unsqueeze(1);
                    let chosen = logits.gather(1, &of_targets, false).squeeze_dim(1);
                    chosen - logits.logsumexp(&[1][..], false)
                };
                let firsts = (0..rows).step_by(PLAIN_HEAD_ROWS as usize);
                vec![Tensor::cat(&firsts.map(chunk).collect::<Vec<Tensor>>(), 0)]
            }),
        ],
    )
}

/// The way to the experts, their gate and up projections, and the way back.
pub(super) fn experts(shapes: &Shapes) -> Vec<Operation> {
    let Some(moe) = &shapes.config.moe else {
        return Vec::new();
    };
    let (count, top_k) = (moe.num_experts as i64, moe.num_experts_per_tok as i64);
    let (rows, hidden) = (shapes.rows(), shapes.config.hidden_size as i64);
    let columns = 2 * shapes.config.expert_intermediate_size() as i64;
    let scores = Tensor::rand([rows, count], (Kind::Float, shapes.device));
    let chosen = scores.topk(top_k, 1, true, false).1;
    let dispatch = Rc::new(Dispatch::new(&chosen, count));
    let assigned = rows * top_k;
    let x = shapes.leaf(&[rows, hidden]);
    let sorted = shapes.leaf(&[assigned, hidden]);
    let gates = Tensor::rand([rows, top_k], (Kind::Float, shapes.device)).set_requires_grad(true);
    let weights = shapes.leaf(&[count, columns, hidden]);
    let moved = (rows + assigned) * hidden;

    let (fused, plain) = (dispatch.clone(), dispatch.clone());
    let there = both_ways(
        &format!("rows to experts {rows}x{hidden}, {top_k} of {count}"),
        [1, 2].map(|times| shapes.work(0.0, times * moved)),
        &[x],
        [
            forward(move |x| vec![fused.gather(&x[0])]),
            forward(move |x| vec![plain.gather_reference(&x[0])]),
        ],
    );
    let product = work::product([assigned, hidden, columns], shapes.kind);
    let product = Work {
        bytes: product.bytes + ((count - 1) * columns * hidden * 2) as f64,
        ..product
    };
    let ends = dispatch.ends().shallow_clone();
    let counts = Vec::<i32>::try_from(&ends).expect("ends are a row of i32");
    let grouped = both_ways(
        &format!("experts {assigned}x{hidden}x{columns} of {count}"),
        [product, product * 3.0],
        &[sorted.shallow_clone(), weights],
        [
            forward(move |x| {
                let stacked = x[1].transpose(1, 2);
                vec![x[0].internal_grouped_mm(&stacked, Some(&ends), None, None)]
            }),
            forward(move |x| {
                let mut first = 0;
                let outputs = counts.iter().enumerate().map(|(expert, &end)| {
                    let (end, start) = (i64::from(end), first);
                    first = end;
                    let own = x[0].narrow(0, start, end - start);
                    own.linear(&x[1].get(expert as i64), None::<&Tensor>)
                });
                vec![Tensor::cat(&outputs.collect::<Vec<Tensor>>(), 0)]
            }),
        ],
    );
    let plain = dispatch.clone();
    let back = both_ways(
        &format!("experts' sum {rows}x{hidden}, {top_k} of {count}"),
        [shapes.work(0.0, moved), shapes.work(0.0, 3 * moved)],
        &[sorted, gates],
        [
            forward(move |x| vec![dispatch.combine(&x[0], &x[1])]),
            forward(move |x| vec![plain.combine_reference(&x[0], &x[1])]),
        ],
    );
    [there, grouped, back].into_iter().flatten().collect()
}
