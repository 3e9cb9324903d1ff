//! What tools of several servers are called: by their own names, and `server__tool` where two servers have the same.

use environments::ToolDef;

use crate::mcp::Offered;

/// Longest name that chat formats take.
const MAX_NAME: usize = 64;

/// The tools of all servers, each given by its name, in order.
///
/// # Errors
/// Two servers or two tools of one name.
pub(crate) fn offered(listed: Vec<(&str, Vec<ToolDef>)>) -> Result<Vec<Offered>, String> {
    for (at, (name, _)) in listed.iter().enumerate() {
        if listed[..at].iter().any(|(other, _)| other == name) {
            return Err(format!("two servers have the name {name:?}"));
        }
    }
    let all: Vec<(usize, String)> = listed
        .iter()
        .enumerate()
        .flat_map(|(server, (_, tools))| tools.iter().map(move |tool| (server, plain(&tool.name))))
        .collect();
    let mut offered: Vec<Offered> = Vec::with_capacity(all.len());
    for (server, (server_name, tools)) in listed.into_iter().enumerate() {
        for tool in tools {
            let name = plain(&tool.name);
            let is_elsewhere = all
                .iter()
                .any(|(other, known)| *other != server && *known == name);
            let shown = match is_elsewhere {
                true => format!("{}__{name}", plain(server_name)),
                false => name,
            };
            if shown.is_empty() || shown.len() > MAX_NAME {
                return Err(format!(
                    "tool {:?} of server {server_name} has no name of 1 to {MAX_NAME} characters",
                    tool.name
                ));
            }
            if offered.iter().any(|known| known.def.name == shown) {
                return Err(format!("server {server_name} has two tools {shown:?}"));
            }
            offered.push(Offered {
                name: tool.name.clone(),
                server,
                def: ToolDef {
                    name: shown,
                    ..tool
                },
            });
        }
    }
    Ok(offered)
}

/// `name` with `_` for whatever is no letter, digit, `_` or `-`.
fn plain(name: &str) -> String {
    let plain = |c: char| match c.is_ascii_alphanumeric() || c == '_' || c == '-' {
        true => c,
        false => '_',
    };
    name.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(names: &[&str]) -> Vec<ToolDef> {
        names
            .iter()
            .map(|name| ToolDef::new(name, "", &[]))
            .collect()
    }

    fn shown(listed: Vec<(&str, Vec<ToolDef>)>) -> Vec<String> {
        let offered = offered(listed).expect("they can be told apart");
        offered.into_iter().map(|tool| tool.def.name).collect()
    }

    #[test]
    fn only_names_that_two_servers_have_are_prefixed() {
        assert_eq!(
            shown(vec![
                ("files", tools(&["read", "list"])),
                ("mail.box", tools(&["read", "send.now"])),
            ]),
            ["files__read", "list", "mail_box__read", "send_now"]
        );
    }

    #[test]
    fn the_servers_own_names_are_kept_for_the_call() {
        let both = vec![("a", tools(&["x.y"])), ("b", tools(&["x.y"]))];
        let offered = offered(both).expect("they can be told apart");
        let own: Vec<(usize, &str)> = offered.iter().map(|t| (t.server, &*t.name)).collect();
        assert_eq!(own, [(0, "x.y"), (1, "x.y")]);
    }

    #[test]
    fn names_that_stay_the_same_are_refused() {
        for listed in [
            vec![("a", tools(&["x", "x"]))],
            vec![("a", tools(&["x.y", "x_y"]))],
            vec![("a", tools(&["x"])), ("a", tools(&["y"]))],
            vec![("a", tools(&[""]))],
        ] {
            offered(listed).expect_err("no two names");
        }
    }
}
