//! Which way a document attends to its selected keys on a GPU.

/// The ways to one result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Dense attention to every visible key, since all of them are selected.
    Dense,
    /// Dense attention under a mask of what is not selected ([`super::masked`]), in the expanded form of latent attention.
    Masked,
    /// Attention to gathered keys ([`super::attention`]), in the absorbed form of latent attention.
    Gathered,
}

/// Heads of a layer, `[width of keys, width of values]` in the form of each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    /// Of queries.
    pub heads: i64,
    /// Of the keys that are gathered.
    pub gathered_kv_heads: i64,
    /// For gathered keys.
    pub gathered: [i64; 2],
    /// For dense attention.
    pub dense: [i64; 2],
}

/// A document's attention in one layer.
#[derive(Clone, Copy, Debug)]
pub struct Problem {
    /// Tokens of the document, with all its branches.
    pub len: i64,
    /// Keys that the query which sees most sees.
    pub most_visible: i64,
    /// Keys that a query attends to at most.
    pub topk: i64,
    /// Whether a backward pass follows.
    pub learns: bool,
    /// Its heads.
    pub shape: HeadShape,
}

/// The way that is taken.
pub fn choose(problem: &Problem) -> Way {
    if problem.most_visible <= problem.topk {
        return Way::Dense;
    }
    if problem.len <= 2 * problem.topk {
        return Way::Masked;
    }
    Way::Gathered
}
