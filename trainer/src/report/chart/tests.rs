use super::*;

fn curve(label: &str, values: &[f64]) -> Curve {
    let point = |(i, &y): (usize, &f64)| Point {
        x: i as f64 + 1.0,
        y,
        spread: 0.0,
    };
    Curve {
        label: label.to_string(),
        run: None,
        color: 3,
        dash: 1,
        points: values.iter().enumerate().map(point).collect(),
    }
}

fn chart(scale: Scale, body: Body) -> Chart {
    Chart {
        title: "A < B".to_string(),
        unit: "",
        scale,
        from_zero: scale == Scale::Linear,
        body,
        bounds: vec![0.5],
        stages: vec![
            StageStart {
                x: 1.0,
                name: "sft".to_string(),
                color: None,
            },
            StageStart {
                x: 3.0,
                name: "grpo".to_string(),
                color: None,
            },
        ],
    }
}

/// The y of every place in the first path of `class`.
fn heights(svg: &str, class: &str) -> Vec<f64> {
    let path = svg
        .split(&format!("class=\"{class}"))
        .nth(1)
        .expect("there is one");
    let path = path
        .split(" d=\"")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .expect("a path");
    path.split(['M', 'L', 'Z', 'h'])
        .filter_map(|place| place.split_once(' ')?.1.parse().ok())
        .collect()
}

#[test]
fn a_curve_is_drawn_to_scale_and_carries_its_values() {
    let svg = chart(
        Scale::Linear,
        Body::Curves(vec![curve("mean", &[0.0, 0.5, 1.0, 0.25])]),
    )
    .svg();
    assert!(svg.contains("aria-label=\"A &lt; B\""), "{svg}");
    assert!(
        svg.contains(
            "<g class=\"curve c3\" data-label=\"mean\" data-x=\"1 2 3 4\" data-y=\"0 0.5 1 0.25\">"
        ),
        "{svg}"
    );
    let heights = heights(&svg, "line d1");
    // 0 at the bottom, equal differences equally far apart.
    assert_eq!(heights[0], BOTTOM);
    assert!(
        (heights[0] - heights[1] - (heights[1] - heights[2])).abs() < 0.11,
        "{heights:?}"
    );
    assert!(heights[2] >= TOP);
    assert_eq!(svg.matches("<circle").count(), 4);
    assert_eq!(svg.matches("class=\"bound\"").count(), 1);
}

#[test]
fn logarithms_leave_out_what_has_no_place() {
    let svg = chart(
        Scale::Log,
        Body::Curves(vec![curve("gap", &[1e-6, 0.0, 1e-4, 1e-2])]),
    )
    .svg();
    let heights = heights(&svg, "line d1");
    assert_eq!(heights.len(), 3);
    assert!(
        (heights[0] - heights[1] - (heights[1] - heights[2])).abs() < 0.11,
        "{heights:?}"
    );
    assert!(svg.contains("data-x=\"1 3 4\""), "{svg}");
    let zero = chart(Scale::Log, Body::Curves(vec![curve("gap", &[0.0, 0.0])]));
    assert!(zero.is_empty());
    assert_eq!(zero.svg(), "");
}

#[test]
fn a_line_is_interrupted_where_a_stage_has_no_figure() {
    let mut gap = curve("kl", &[1.0, 1.0, 1.0, 1.0, 1.0]);
    gap.points[3].x = 40.0;
    gap.points[4].x = 99.0;
    let svg = chart(Scale::Linear, Body::Curves(vec![gap])).svg();
    let path = svg
        .split("class=\"line d1\" d=\"")
        .nth(1)
        .expect("there is one");
    let path = path.split('"').next().expect("split gives one");
    assert_eq!(
        (
            path.matches('M').count(),
            path.matches('L').count(),
            path.matches("h0").count()
        ),
        (3, 2, 2)
    );
}

#[test]
fn a_band_lies_about_its_curve() {
    let mut banded = curve("reward", &[0.5, 0.5]);
    for point in &mut banded.points {
        point.spread = 0.25;
    }
    let svg = chart(Scale::Linear, Body::Curves(vec![banded])).svg();
    let (band, line) = (heights(&svg, "band"), heights(&svg, "line"));
    assert!(
        band[0] < line[0] && line[0] < band[3].max(band[2]),
        "{band:?} {line:?}"
    );
}

#[test]
fn parts_of_bars_stand_on_one_another() {
    let parts = vec![curve("rollout", &[2.0, 2.0]), curve("train", &[1.0, 0.0])];
    let svg = chart(Scale::Linear, Body::Bars(parts)).svg();
    let bars: Vec<&str> = svg.split("class=\"bar\" d=\"").skip(1).collect();
    // M left low V high H right V low Z, for each bar that has a height.
    let numbers = |bar: &str| -> Vec<f64> {
        let path = bar.split('"').next().expect("split gives one");
        path.split(['M', 'V', 'H', 'Z', ' '])
            .filter_map(|number| number.parse().ok())
            .collect()
    };
    let (below, above) = (numbers(bars[0]), numbers(bars[1]));
    assert_eq!((below.len(), above.len()), (10, 5));
    assert_eq!(below[1], BOTTOM);
    assert_eq!(
        above[1], below[2],
        "the second part begins where the first ends"
    );
    let (first, second) = (below[1] - below[2], above[1] - above[2]);
    assert!((first - 2.0 * second).abs() < 0.2, "{first} {second}");
}

#[test]
fn many_steps_are_thinned_to_what_can_be_seen() {
    let many: Vec<f64> = (0..5000).map(|i| f64::from(i % 100)).collect();
    let lines = chart(Scale::Linear, Body::Curves(vec![curve("a", &many)])).svg();
    assert!(lines.len() < 20_000, "{}", lines.len());
    assert!(!lines.contains("<circle"));
    let bars = chart(Scale::Linear, Body::Bars(vec![curve("a", &many)])).svg();
    assert!(bars.len() < 8_000, "{}", bars.len());
}

#[test]
fn stages_are_named_where_there_is_room() {
    let svg = chart(Scale::Linear, Body::Curves(vec![curve("a", &[1.0; 9])])).svg();
    assert!(
        svg.contains(">sft</text>") && svg.contains(">grpo</text>"),
        "{svg}"
    );
    // Only the one that does not begin at the left edge has a line.
    assert_eq!(svg.matches("<path class=\"stage\"").count(), 1);
    let mut crowded = chart(Scale::Linear, Body::Curves(vec![curve("a", &[1.0; 200])]));
    let svg = crowded.svg();
    assert!(
        !svg.contains(">sft</text>") && svg.contains(">grpo</text>"),
        "{svg}"
    );
    // All of it in the second stage.
    crowded.stages[1].x = 0.0;
    let svg = crowded.svg();
    assert!(!svg.contains(">sft</text>"), "{svg}");
    assert!(!svg.contains("<path class=\"stage\""), "{svg}");
}

#[test]
fn one_step_alone_is_a_dot() {
    let svg = chart(Scale::Linear, Body::Curves(vec![curve("a", &[0.5])])).svg();
    assert_eq!(svg.matches("<circle").count(), 1);
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
}
