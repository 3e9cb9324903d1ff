//! The one log-prob function: sampler and trainer both call it.

/// The support that top-k / top-p / min-p left at each completion token, as CSR rows.
///
/// Row i is `ids[offsets[i]..offsets[i + 1]]`. An empty row means that the whole vocabulary was
/// kept. `offsets` has one more entry than there are rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptTokens {
    /// Row boundaries, `[rows + 1]`, starting with 0.
    pub offsets: Vec<u32>,
    /// Token ids, ascending within a row.
    pub ids: Vec<u32>,
}

impl Default for KeptTokens {
    fn default() -> Self {
        KeptTokens {
            offsets: vec![0],
            ids: Vec::new(),
        }
    }
}

impl KeptTokens {
    /// Appends a row; an empty slice stands for the whole vocabulary.
    pub fn push(&mut self, row: &[u32]) {
        self.ids.extend_from_slice(row);
        self.offsets.push(self.ids.len() as u32);
    }

    /// Number of rows.
    pub fn num_rows(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The ids of row `i`; empty when everything was kept.
    pub fn row(&self, i: usize) -> &[u32] {
        &self.ids[self.offsets[i] as usize..self.offsets[i + 1] as usize]
    }
}
