//! What agents say in words and lists, cut to what anybody would read: it is kept per member, shown to every client, and logged.
//!
//! Pure.

use faasnet_api::v1;
use v1::event::Event;

/// Errors and reasons.
const REASON_BYTES: usize = 500;
/// Words: a version, a way of moving bytes.
const WORD_BYTES: usize = 64;
/// Names that agents ask for, above what a name may have, so that what is too long is still refused as that.
const WISH_BYTES: usize = 1_024;
/// Neighbours of one function that a node names. A node has a handful at a time.
const NEIGHBOURS: usize = 256;
/// Stripes, and what is told once per stripe.
const STRIPES: usize = 16;

/// `text` without control characters, which would forge lines in logs and on terminals, and not longer than `bytes_max`.
pub(super) fn plain(text: &str, bytes_max: usize) -> String {
    let mut plain = String::with_capacity(text.len().min(bytes_max));
    for char in text.chars() {
        let escaped = char.is_control().then(|| char.escape_default().to_string());
        let char_bytes = escaped.as_ref().map_or(char.len_utf8(), String::len);
        if plain.len() + char_bytes > bytes_max {
            plain.push('…');
            break;
        }
        match escaped {
            Some(escaped) => plain.push_str(&escaped),
            None => plain.push(char),
        }
    }
    plain
}

/// The version of an agent.
pub(super) fn version(text: &str) -> String {
    plain(text, WORD_BYTES)
}

/// Cuts what an event says.
pub(crate) fn tame(event: &mut Event) {
    match event {
        Event::Heartbeat(heartbeat) => heartbeat.functions.iter_mut().for_each(tame_progress),
        Event::EdgeFailed(failed) => cut(&mut failed.reason, REASON_BYTES),
        Event::ImageFailed(failed) => cut(&mut failed.reason, REASON_BYTES),
        Event::JoinRequested(join) => {
            cut(&mut join.tenant, WISH_BYTES);
            cut(&mut join.function, WISH_BYTES);
        }
        Event::ImageWanted(wanted) => cut(&mut wanted.reference, WISH_BYTES),
        Event::ImageRead(read) => cut(&mut read.failure, REASON_BYTES),
        Event::Attached(_) | Event::Dropped(_) | Event::OriginWanted(_) | Event::BlocksReread(_) => {}
    }
}

fn tame_progress(progress: &mut v1::FunctionProgress) {
    cut(&mut progress.error, REASON_BYTES);
    cut(&mut progress.mover, WORD_BYTES);
    progress.upstreams.truncate(NEIGHBOURS);
    progress.downstreams.truncate(NEIGHBOURS);
    progress.levels.truncate(STRIPES);
    if let Some(story) = &mut progress.story {
        story.stalls.truncate(STRIPES);
        story.given_up.truncate(STRIPES);
        story.given_up.iter_mut().for_each(|given_up| cut(&mut given_up.reason, REASON_BYTES));
    }
}

/// Nearly everything passes as it is.
fn cut(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max || text.chars().any(char::is_control) {
        *text = plain(text, bytes_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a text that forges a line in a log, one of megabytes, and a cut in the middle of a character.
    #[test]
    fn words_are_short_and_plain() {
        assert_eq!(plain("a\nb\u{1b}[31m", 99), "a\\nb\\u{1b}[31m");
        assert_eq!(plain("äöü", 4), "äö…");
        assert_eq!(plain("äöü", 6), "äöü");
        let mut failed = Event::ImageFailed(v1::ImageFailed { reason: "x".repeat(3 << 20), ..Default::default() });
        tame(&mut failed);
        assert!(matches!(failed, Event::ImageFailed(failed) if failed.reason.len() < 510));
        let row = v1::FunctionProgress { upstreams: vec![Default::default(); 100_000], ..Default::default() };
        let mut heartbeat = Event::Heartbeat(v1::Heartbeat { functions: vec![row] });
        tame(&mut heartbeat);
        assert!(matches!(heartbeat, Event::Heartbeat(beat) if beat.functions[0].upstreams.len() == NEIGHBOURS));
    }
}
