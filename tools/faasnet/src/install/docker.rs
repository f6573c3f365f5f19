//! Docker: `registry-mirrors` in `/etc/docker/daemon.json`. Docker asks mirrors for images of Docker Hub only.
//!
//! The file is edited as text at the place of the one member, so that everything else stays as its owner wrote it.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::change::{Edit, Plan};
use super::host::Host;
use super::names::{Mirror, Registry};
use super::record::Touched;

const DAEMON: &str = "/etc/docker/daemon.json";
const MEMBER: &str = "registry-mirrors";
/// Places from which Debian's and Docker's own units take dockerd's flags.
const UNITS: [&str; 5] = [
    "/etc/default/docker",
    "/etc/systemd/system/docker.service",
    "/etc/systemd/system/docker.service.d",
    "/lib/systemd/system/docker.service",
    "/lib/systemd/system/docker.service.d",
];

/// What to change so that Docker asks `mirror` first.
pub(super) fn install(host: &Host, mirror: &Mirror, registries: &[Registry]) -> Result<Plan> {
    if let Some(other) = registries.iter().find(|registry| **registry != Registry::docker_hub()) {
        bail!("Docker asks mirrors for images of Docker Hub only, never for those of {other}; leave --registry out");
    }
    if let Some(place) = flag_in_a_unit(host)? {
        bail!(
            "{place} starts dockerd with --registry-mirror, and dockerd refuses to start when {DAEMON} sets the same; \
             move that mirror into {DAEMON} first. Nothing was changed"
        );
    }
    let path = Path::new(DAEMON);
    let before = host.read(path)?;
    let after = with_mirror(before.as_deref(), mirror)?;
    Ok(Plan {
        edits: after.and_then(|after| Edit::of(path, before, Some(after))).into_iter().collect(),
        notes: vec!["Docker asks mirrors for images of Docker Hub only; other registries are read as before".into()],
        next: vec!["systemctl reload docker".into()],
        registries: vec![Registry::docker_hub()],
        ..Plan::default()
    })
}

/// How the file looks without our entry; `None` when nothing is left of what we made.
pub(super) fn without(touched: &Touched, text: &str, mirror: &Mirror) -> Result<Option<String>> {
    let rest = without_mirror(text, mirror)?;
    let empty = !touched.existed && parse(&rest)?.as_object().is_some_and(serde_json::Map::is_empty);
    Ok((!empty).then_some(rest))
}

fn flag_in_a_unit(host: &Host) -> Result<Option<String>> {
    for unit in UNITS.map(Path::new) {
        let inside = host.list(unit)?.into_iter().map(|name| unit.join(name)).collect::<Vec<_>>();
        let files = if inside.is_empty() { vec![unit.to_owned()] } else { inside };
        for file in files {
            let text = host.read(&file)?.unwrap_or_default();
            if text.lines().any(|line| !line.trim_start().starts_with(['#', ';']) && line.contains("--registry-mirror"))
            {
                return Ok(Some(file.display().to_string()));
            }
        }
    }
    Ok(None)
}

/// The file with the mirror as the first one; `None` when it is in there already.
fn with_mirror(text: Option<&str>, mirror: &Mirror) -> Result<Option<String>> {
    let entry = format!("\"{}\"", mirror.url());
    // Docker takes an empty file for none.
    let Some(text) = text.filter(|text| !text.trim().is_empty()) else {
        return Ok(Some(format!("{{\n  \"{MEMBER}\": [{entry}]\n}}\n")));
    };
    let mirrors = mirrors(text)?;
    if mirrors.iter().any(|url| is(url, mirror)) {
        return Ok(None);
    }
    let members = members(text, text.find('{').context("an object begins with a brace")?);
    let new = match members.iter().find(|member| member.name == MEMBER) {
        Some(member) => put_first(text, member.value.clone(), &entry, mirrors.is_empty()),
        None => add_member(text, &members, &format!("\"{MEMBER}\": [{entry}]")),
    };
    parse(&new).context("the change would break the file; this is a fault of faasnet")?;
    Ok(Some(new))
}

fn without_mirror(text: &str, mirror: &Mirror) -> Result<String> {
    let mirrors = mirrors(text)?;
    let members = members(text, text.find('{').context("an object begins with a brace")?);
    let Some(position) = members.iter().position(|member| member.name == MEMBER) else { return Ok(text.to_owned()) };
    let ours: Vec<_> = (0..mirrors.len()).filter(|index| is(&mirrors[*index], mirror)).collect();
    let spans: Vec<_> = members.iter().map(|member| member.whole.clone()).collect();
    match ours.as_slice() {
        [] => Ok(text.to_owned()),
        ours if ours.len() == mirrors.len() => Ok(cut(text, &spans, position)),
        [first, ..] => {
            let rest = cut(text, &elements(text, members[position].value.start), *first);
            without_mirror(&rest, mirror)
        }
    }
}

fn parse(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("{DAEMON} is not JSON; correct it first, nothing was changed"))
}

/// The mirrors that the file names.
fn mirrors(text: &str) -> Result<Vec<String>> {
    let Value::Object(object) = parse(text)? else { bail!("{DAEMON} is not a JSON object; nothing was changed") };
    match object.get(MEMBER) {
        None => Ok(Vec::new()),
        Some(value) => serde_json::from_value(value.clone()).with_context(|| {
            format!("{MEMBER} in {DAEMON} is not a list of URLs; correct it first, nothing was changed")
        }),
    }
}

fn is(url: &str, mirror: &Mirror) -> bool {
    url.trim_end_matches('/') == mirror.url()
}

fn put_first(text: &str, value: Range<usize>, entry: &str, is_empty: bool) -> String {
    let inside = value.start + 1;
    let gap = &text[inside..inside + blanks(&text[inside..])];
    let glue = match (is_empty, gap) {
        (true, _) => String::new(),
        (false, "") => ", ".into(),
        (false, gap) => format!(",{gap}"),
    };
    let from = if is_empty { value.end - 1 } else { inside + gap.len() };
    let lead = if is_empty { "" } else { gap };
    format!("{}{lead}{entry}{glue}{}", &text[..inside], &text[from..])
}

fn add_member(text: &str, members: &[Member], member: &str) -> String {
    match members {
        [first, .., last] | [first @ last] => {
            let open = text[..first.whole.start].rfind('{').map_or(0, |brace| brace + 1);
            let end = last.whole.end;
            format!("{},{}{member}{}", &text[..end], &text[open..first.whole.start], &text[end..])
        }
        [] => format!("{{\n  {member}\n}}\n"),
    }
}

/// Takes one of several things between commas out, with one of the commas.
fn cut(text: &str, spans: &[Range<usize>], index: usize) -> String {
    let range = match (index.checked_sub(1).map(|before| &spans[before]), spans.get(index + 1)) {
        (_, Some(next)) => spans[index].start..next.start,
        (Some(before), None) => before.end..spans[index].end,
        (None, None) => {
            let from = text[..spans[index].start].trim_end().len();
            from..spans[index].end + blanks(&text[spans[index].end..])
        }
    };
    format!("{}{}", &text[..range.start], &text[range.end..])
}

/// A member of an object, by its place in the text.
struct Member {
    name: String,
    whole: Range<usize>,
    value: Range<usize>,
}

/// The members of the object that opens at `open`; the text must be valid JSON.
fn members(text: &str, open: usize) -> Vec<Member> {
    let mut members = Vec::new();
    let mut at = open + 1;
    loop {
        at += text[at..].len() - text[at..].trim_start_matches([' ', '\t', '\r', '\n', ',']).len();
        if text[at..].starts_with('}') || at >= text.len() {
            return members;
        }
        let name = at..value_end(text, at);
        let colon = name.end + blanks(&text[name.end..]) + 1;
        let start = colon + blanks(&text[colon..]);
        let value = start..value_end(text, start);
        at = value.end;
        let name_text = serde_json::from_str(&text[name.clone()]).unwrap_or_default();
        members.push(Member { name: name_text, whole: name.start..value.end, value });
    }
}

/// The elements of the list that opens at `open`.
fn elements(text: &str, open: usize) -> Vec<Range<usize>> {
    let mut elements = Vec::new();
    let mut at = open + 1;
    loop {
        at += text[at..].len() - text[at..].trim_start_matches([' ', '\t', '\r', '\n', ',']).len();
        if text[at..].starts_with(']') || at >= text.len() {
            return elements;
        }
        elements.push(at..value_end(text, at));
        at = value_end(text, at);
    }
}

/// Where the value that begins at `start` ends.
fn value_end(text: &str, start: usize) -> usize {
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    for (index, byte) in text.bytes().enumerate().skip(start) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => {
                quoted = !quoted;
                if !quoted && depth == 0 {
                    return index + 1;
                }
            }
            _ if quoted => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => return index,
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return index + 1;
                }
            }
            b',' | b' ' | b'\t' | b'\r' | b'\n' if depth == 0 => return index,
            _ => {}
        }
    }
    text.len()
}

fn blanks(text: &str) -> usize {
    text.len() - text.trim_start().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror() -> Mirror {
        "http://127.0.0.1:7412".parse().unwrap()
    }

    /// Catches an edit that touches more than our entry: every file comes back to the last byte.
    #[test]
    fn every_file_comes_back_byte_for_byte() {
        let files = [
            "{\n  \"log-driver\": \"json-file\",\n  \"log-opts\": {\"max-size\": \"1}0m\"}\n}\n",
            "{\n\t\"registry-mirrors\": [\n\t\t\"https://a\",\n\t\t\"https://b\"\n\t],\n\t\"z\": 1,\n\t\"a\": [1, {\"b\": \"\\\"]\"}]\n}",
            "{\"registry-mirrors\":[\"https://a\"],\"a\":null}",
            "{\"x\":1}",
            "  {  \"x\" : true  }  ",
        ];
        for text in files {
            let new = with_mirror(Some(text), &mirror()).unwrap().unwrap();
            assert_eq!(mirrors(&new).unwrap()[0], mirror().url(), "{new}");
            assert_eq!(with_mirror(Some(&new), &mirror()).unwrap(), None, "{new}");
            assert_eq!(without_mirror(&new, &mirror()).unwrap(), text);
        }
        let tidy = with_mirror(Some(files[0]), &mirror()).unwrap().unwrap();
        let expected = "\"1}0m\"},\n  \"registry-mirrors\": [\"http://127.0.0.1:7412\"]\n}\n";
        assert!(tidy.ends_with(expected), "{tidy}");
    }

    /// Catches files without anything in them that break the edit, and our own file that is not recognised as empty.
    #[test]
    fn empty_files_and_lists() {
        for text in [None, Some(""), Some("\n"), Some("{}"), Some("{\n}\n"), Some("{\"registry-mirrors\": [ ]}")] {
            let new = with_mirror(text, &mirror()).unwrap().unwrap();
            assert_eq!(mirrors(&new).unwrap(), [mirror().url()], "{new}");
            let rest = without_mirror(&new, &mirror()).unwrap();
            assert_eq!(parse(&rest).unwrap(), serde_json::json!({}), "{new} → {rest}");
        }
    }

    /// Catches a broken file that is "repaired" by being replaced.
    #[test]
    fn broken_files_are_refused() {
        for text in ["{", "[]", "{\"registry-mirrors\": 1}", "{\"registry-mirrors\": [1]}", "{} x", "{\"a\": 1,}"] {
            let error = format!("{:#}", with_mirror(Some(text), &mirror()).unwrap_err());
            assert!(error.contains(DAEMON) && error.contains("nothing was changed"), "{error}");
        }
    }
}
