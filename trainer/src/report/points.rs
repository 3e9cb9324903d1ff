//! The points of a curve, and thinning them out to what a plot can show.

/// Points of a curve beyond which it is thinned: a plot is some 400 pixels wide.
pub(super) const MAX_POINTS: usize = 480;

/// A gap so many times as long as the usual one interrupts the line: a stage without the figure lies there.
const GAP: f64 = 5.0;

/// A figure of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    /// Step of the run.
    pub x: f64,
    /// Value.
    pub y: f64,
    /// Half the height of the band about it; 0 where there is none.
    pub spread: f64,
}

/// At most `limit` of `points`, which ascend in x: of each bucket of neighbours the first, the last, the lowest and the
/// highest, so that no extreme is lost and the line looks the same.
pub(super) fn thinned(points: &[Point], limit: usize) -> Vec<Point> {
    if points.len() <= limit {
        return points.to_vec();
    }
    let per_bucket = points.len().div_ceil((limit / 4).max(1));
    let mut kept = Vec::new();
    for bucket in points.chunks(per_bucket) {
        let by_height = |a: &(usize, &Point), b: &(usize, &Point)| a.1.y.total_cmp(&b.1.y);
        let lowest = bucket.iter().enumerate().min_by(by_height);
        let highest = bucket.iter().enumerate().max_by(by_height);
        let mut indices = [0, bucket.len() - 1, 0, 0];
        if let (Some((lowest, _)), Some((highest, _))) = (lowest, highest) {
            indices[2..].copy_from_slice(&[lowest, highest]);
        }
        indices.sort_unstable();
        for (i, &index) in indices.iter().enumerate() {
            if i == 0 || index != indices[i - 1] {
                kept.push(bucket[index]);
            }
        }
    }
    kept
}

/// Where the line through `points` begins anew after a gap.
pub(super) fn restarts(points: &[Point]) -> Vec<f64> {
    let distance = |pair: &[Point]| pair[1].x - pair[0].x;
    let mut distances: Vec<f64> = points.windows(2).map(distance).collect();
    distances.sort_unstable_by(f64::total_cmp);
    let Some(usual) = distances.get(distances.len().saturating_sub(1) / 2) else {
        return Vec::new();
    };
    let after_gap = |pair: &[Point]| (distance(pair) > GAP * usual).then_some(pair[1].x);
    points.windows(2).filter_map(after_gap).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_begins_anew_after_steps_without_the_figure() {
        let at = |x: f64| Point {
            x,
            y: 0.0,
            spread: 0.0,
        };
        let gap = [1.0, 2.0, 3.0, 40.0, 41.0].map(at);
        assert_eq!(restarts(&gap), [40.0_f64]);
        // What is measured every 12 steps has no gap.
        let sparse = [0.0, 9.0, 21.0, 33.0, 45.0].map(at);
        assert!(restarts(&sparse).is_empty());
        assert!(restarts(&[]).is_empty());
    }

    #[test]
    fn thinning_keeps_both_ends_and_every_extreme() {
        let point = |i: usize| Point {
            x: i as f64,
            y: match i {
                1234 => 9.0,
                3456 => -9.0,
                _ => (i % 7) as f64 / 10.0,
            },
            spread: 0.0,
        };
        let all: Vec<Point> = (0..5000).map(point).collect();
        let kept = thinned(&all, 480);
        assert!(kept.len() <= 480, "{}", kept.len());
        for i in [0, 1234, 3456, 4999] {
            assert!(kept.contains(&all[i]), "{i}");
        }
        assert!(kept.windows(2).all(|pair| pair[0].x < pair[1].x));
    }

    #[test]
    fn few_points_stay_as_they_are() {
        let all: Vec<Point> = (0..480)
            .map(|i| Point {
                x: f64::from(i),
                y: 0.0,
                spread: 0.0,
            })
            .collect();
        assert_eq!(thinned(&all, 480), all);
    }
}
