//! How two networks that should be one differ: hyper-parameters and the weights they compute with.

use kernels::tch::{self, Tensor};
use model::{Parameter, Transformer};
use serde_json::Value;

use super::observation::{NetworkDifference, WeightDifference};

/// Compares the sampler's published weights with those the learner trains.
pub(super) fn difference(sampler: &Transformer, learner: &Transformer) -> NetworkDifference {
    let shape = |model: &Transformer| serde_json::to_value(model.config());
    let mut found = NetworkDifference::default();
    if let (Ok(ours), Ok(theirs)) = (shape(sampler), shape(learner)) {
        compare("", &ours, &theirs, &mut found.shape);
    }
    let (ours, theirs) = (sampler.parameters(), learner.parameters());
    let same_shape = |(a, b): (&&Parameter, &&Parameter)| a.master.size() == b.master.size();
    if ours.len() == theirs.len() && ours.iter().zip(&theirs).all(same_shape) {
        found.weights = weights(&ours, &theirs);
    }
    found
}

/// Collects a sentence for every value in which two JSON trees differ.
fn compare(path: &str, sampler: &Value, learner: &Value, found: &mut Vec<String>) {
    match (sampler, learner) {
        (Value::Object(ours), Value::Object(theirs)) => {
            for (key, value) in ours {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                compare(&path, value, theirs.get(key).unwrap_or(&Value::Null), found);
            }
        }
        _ if sampler == learner => {}
        _ => found.push(format!(
            "{path} is {sampler} in the sampler and {learner} in the learner"
        )),
    }
}

fn weights(sampler: &[&Parameter], learner: &[&Parameter]) -> Option<WeightDifference> {
    let mut num_differing = 0;
    let mut most: (f64, &str) = (0.0, "");
    for (ours, theirs) in sampler.iter().zip(learner) {
        let published = tch::no_grad(|| ours.weight());
        let trained = theirs.weight().detach();
        let by = largest_difference(&published, &trained);
        num_differing += usize::from(by > 0.0);
        if by > most.0 {
            most = (by, &theirs.name);
        }
    }
    (num_differing > 0).then(|| WeightDifference {
        num_differing,
        num_tensors: learner.len(),
        name: most.1.to_string(),
        largest: most.0,
    })
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_other_value_is_named_with_both() {
        let ours = json!({"theta": 100.0, "mla": {"rank": 8, "interleave": true}, "dsa": null});
        let theirs = json!({"theta": 1e4, "mla": {"rank": 8, "interleave": false}, "dsa": null});
        let mut found = Vec::new();
        compare("", &ours, &theirs, &mut found);
        found.sort();
        assert_eq!(
            found,
            [
                "mla.interleave is true in the sampler and false in the learner",
                "theta is 100.0 in the sampler and 10000.0 in the learner"
            ]
        );
    }
}
