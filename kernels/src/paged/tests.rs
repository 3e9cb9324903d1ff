//! Attention over pages against libtorch's over gathered rows.

use tch::{Device, Kind, Tensor};

use super::*;

struct Case {
    heads: [i64; 2],
    dims: [i64; 2],
    page: usize,
    lengths: Vec<i64>,
}

/// Pages in an order of their own, as many as the sequences take, and the rows of the cache.
fn table(case: &Case) -> (Vec<i32>, usize, i64) {
    let width = (*case.lengths.iter().max().unwrap() as usize).div_ceil(case.page);
    let pages = case.lengths.len() * width;
    let order = (0..pages).map(|i| ((i * 7 + 3) % pages) as i32);
    // 7 and the number of pages have no common divisor.
    assert!(!pages.is_multiple_of(7));
    (order.collect(), width, (pages * case.page) as i64)
}

fn reference(q: &Tensor, k: &Tensor, v: &Tensor, table: PageTable, lengths: &[i64]) -> Tensor {
    let (group, scale) = (q.size()[1] / k.size()[1], 0.3);
    let outs = lengths.iter().enumerate().map(|(b, &len)| {
        let rows: Vec<i64> = table
            .runs(b, len as usize)
            .flat_map(|(first, tokens)| first as i64..(first + tokens) as i64)
            .collect();
        let of_heads = |x: &Tensor| {
            let x = x.index_select(0, &Tensor::from_slice(&rows));
            let x = x.to_kind(Kind::Double).transpose(0, 1);
            x.repeat_interleave_self_int(group, 0, None::<i64>)
        };
        let q = q.get(b as i64).to_kind(Kind::Double).unsqueeze(2);
        let weights = (of_heads(k).bmm(&q).squeeze_dim(2) * scale).softmax(-1, Kind::Double);
        weights.unsqueeze(1).bmm(&of_heads(v)).squeeze_dim(1)
    });
    Tensor::stack(&outs.collect::<Vec<_>>(), 0)
}

#[test]
fn attention_reads_the_rows_that_the_table_names() {
    tch::manual_seed(3);
    let case = |heads, dims, page, lengths: &[i64]| Case {
        heads,
        dims,
        page,
        lengths: lengths.to_vec(),
    };
    for case in [
        case([9, 3], [64, 64], 32, &[75, 1, 32, 33]),
        case([4, 2], [8, 8], 4, &[5, 9, 4]),
        case([8, 1], [40, 24], 2, &[7, 2]),
        // Enough work for several threads.
        case([8, 2], [128, 128], 32, &[900, 700, 1000]),
    ] {
        let (pages, width, rows) = table(&case);
        let table = PageTable {
            pages: &pages,
            width,
            page: case.page,
        };
        let ([heads, kv], [dim, v_dim]) = (case.heads, case.dims);
        for (kind, limit) in [(Kind::Float, 5e-6), (Kind::BFloat16, 8e-3)] {
            let random =
                |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind);
            let q = random(&[case.lengths.len() as i64, heads, dim]);
            let k = random(&[rows, kv, dim]);
            let v = random(&[rows, kv, v_dim]);
            let check = |found: Tensor, v: &Tensor| {
                assert_eq!(found.kind(), kind);
                let expected = reference(&q, &k, v, table, &case.lengths);
                let difference = (found.to_kind(Kind::Double) - expected).abs().max();
                let difference = difference.double_value(&[]);
                assert!(
                    difference < limit,
                    "{heads} heads in {kind:?}: {difference}"
                );
            };
            check(attend(&q, &k, &v, table, &case.lengths, 0.3), &v);
            let prefix = Values::KeyPrefix(v_dim);
            check(
                attend(&q, &k, prefix, table, &case.lengths, 0.3),
                &k.narrow(2, 0, v_dim),
            );
        }
    }
}

#[test]
fn a_sequence_gets_the_same_bits_whatever_its_neighbours() {
    tch::manual_seed(4);
    let lengths = [40, 3, 21];
    let case = Case {
        heads: [6, 2],
        dims: [16, 16],
        page: 8,
        lengths: lengths.to_vec(),
    };
    let (pages, width, rows) = table(&case);
    let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
    let (q, k, v) = (
        random(&[3, 6, 16]),
        random(&[rows, 2, 16]),
        random(&[rows, 2, 16]),
    );
    let of = |pages: &[i32], q: &Tensor, lengths: &[i64]| {
        let table = PageTable {
            pages,
            width,
            page: 8,
        };
        attend(q, &k, &v, table, lengths, 0.5)
    };
    let all = of(&pages, &q, &lengths);
    for b in 0..3 {
        let own = &pages[b * width..(b + 1) * width];
        let alone = of(own, &q.narrow(0, b as i64, 1), &lengths[b..=b]);
        assert_eq!(alone.get(0), all.get(b as i64));
    }
}

#[test]
fn gathered_pages_lie_in_the_order_of_the_table() {
    let cache = Tensor::arange(12, (Kind::Float, Device::Cpu)).view([6, 1, 2]);
    let pages = Tensor::from_slice(&[2_i64, 0, 1, 1]);
    let found = gather(&cache, &pages, 2, 2);
    assert_eq!(found.size(), [2, 4, 1, 2]);
    let rows = Vec::<f32>::try_from(found.select(3, 0).reshape([-1])).unwrap();
    assert_eq!(rows, [8.0, 10.0, 0.0, 2.0, 4.0, 6.0, 4.0, 6.0]);
}
