//! A JSON object of a file, read key by key: every error names the file and the key.
//!
//! `null` counts as absent, as it does for transformers. An object inside, such as
//! `rope_parameters`, is read the same way; its keys are called `rope_parameters.rope_theta`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::checkpoint::{io, malformed};
use crate::weights::WeightError;

/// A JSON object and where it came from.
pub(super) struct Keys {
    path: PathBuf,
    /// `rope_parameters.` within that object, empty at the top.
    prefix: String,
    map: Map<String, Value>,
}

impl Keys {
    /// Reads the object that the file `path` holds.
    ///
    /// # Errors
    /// An unreadable file, or one that holds something else.
    pub(super) fn read(path: &Path) -> Result<Keys, WeightError> {
        let text = std::fs::read(path).map_err(io(path))?;
        let map = serde_json::from_slice(&text)
            .map_err(|error| malformed(path, format!("not a JSON object: {error}")))?;
        Ok(Keys {
            path: path.to_path_buf(),
            prefix: String::new(),
            map,
        })
    }

    /// The value of `key`, unless absent or null.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The object that is the value of `key`; `None` also where it is empty.
    ///
    /// # Errors
    /// The value is no object.
    pub(super) fn object(&self, key: &str) -> Result<Option<Keys>, WeightError> {
        let map = self.optional(key, Value::as_object)?;
        Ok(map.filter(|map| !map.is_empty()).map(|map| Keys {
            path: self.path.clone(),
            prefix: format!("{}{key}.", self.prefix),
            map: map.clone(),
        }))
    }

    /// `convert` of the value of `key`, where there is one.
    ///
    /// # Errors
    /// A value that `convert` rejects.
    pub(super) fn optional<'a, T>(
        &'a self,
        key: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, WeightError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match convert(value) {
                Some(converted) => Ok(Some(converted)),
                None => Err(self.refused(key, format!("can't be {value}"))),
            },
        }
    }

    /// The same, but `key` must be there.
    pub(super) fn required<'a, T>(
        &'a self,
        key: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<T, WeightError> {
        self.optional(key, convert)?
            .ok_or_else(|| self.missing(key))
    }

    pub(super) fn optional_size(&self, key: &str) -> Result<Option<usize>, WeightError> {
        self.optional(key, to_size)
    }

    pub(super) fn size(&self, key: &str) -> Result<usize, WeightError> {
        self.required(key, to_size)
    }

    pub(super) fn number(&self, key: &str) -> Result<f64, WeightError> {
        self.required(key, Value::as_f64)
    }

    pub(super) fn optional_number(&self, key: &str) -> Result<Option<f64>, WeightError> {
        self.optional(key, Value::as_f64)
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, WeightError> {
        self.optional(key, Value::as_bool)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, WeightError> {
        self.optional(key, Value::as_str)
    }

    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, WeightError> {
        self.optional(key, |value| {
            value.as_array()?.iter().map(Value::as_str).collect()
        })
    }

    /// One token id, a list of them, or none.
    pub(super) fn ids(&self, key: &str) -> Result<Vec<u32>, WeightError> {
        let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
        let ids = self.optional(key, |value| match value {
            Value::Array(list) => list.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default())
    }

    /// Errors unless the text `key` is absent or one of `supported`.
    pub(super) fn only(&self, key: &str, supported: &[&str]) -> Result<(), WeightError> {
        match self.text(key)? {
            Some(value) if !supported.contains(&value) => {
                let supported = supported.join(" and ");
                Err(self.refused(key, format!("is '{value}'; only {supported} is supported")))
            }
            _ => Ok(()),
        }
    }

    /// Errors unless the flag `key` is absent or `value`.
    pub(super) fn only_flag(&self, key: &str, value: bool, why: &str) -> Result<(), WeightError> {
        match self.flag(key)? {
            Some(found) if found != value => Err(self.refused(key, format!("is {found}; {why}"))),
            _ => Ok(()),
        }
    }

    pub(super) fn missing(&self, key: &str) -> WeightError {
        self.malformed(format!(
            "the key '{}{key}' is missing; add it as the model's release has it",
            self.prefix
        ))
    }

    /// An error about the value of `key`.
    pub(super) fn refused(&self, key: &str, problem: impl AsRef<str>) -> WeightError {
        self.malformed(format!("'{}{key}' {}", self.prefix, problem.as_ref()))
    }

    pub(super) fn malformed(&self, problem: impl Into<String>) -> WeightError {
        malformed(&self.path, problem)
    }
}

/// No size of a model comes near 2^32; the bound keeps products of sizes from overflowing.
fn to_size(value: &Value) -> Option<usize> {
    u32::try_from(value.as_u64()?)
        .ok()
        .map(|size| size as usize)
}
