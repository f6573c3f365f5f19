//! Operations that answer in several messages, in the form that the caller asks for with `Accept`: server-sent events, one JSON object per
//! line, or, for those that end, only the last message.

use axum::Json;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio_stream::StreamExt;
use tonic::Status;

use super::refused::Refused;
use crate::shell::clients::Replies;

/// How messages are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// One JSON object: the last message.
    Last,
    /// `application/x-ndjson`
    Lines,
    /// `text/event-stream`
    Events,
}

impl Form {
    /// What the caller accepts; `otherwise` when it does not say.
    pub(super) fn of(headers: &HeaderMap, otherwise: Self) -> Self {
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
        let accepts = |media: &str| accept.split(',').any(|part| part.split(';').next().map(str::trim) == Some(media));
        match () {
            () if accepts("text/event-stream") => Self::Events,
            () if accepts("application/x-ndjson") => Self::Lines,
            () => otherwise,
        }
    }

    fn media_type(self) -> &'static str {
        match self {
            Self::Last => "application/json",
            Self::Lines => "application/x-ndjson",
            Self::Events => "text/event-stream",
        }
    }

    fn frame<T: Serialize>(self, message: Result<T, Status>) -> Bytes {
        let (event, json) = match message {
            Ok(message) => ("", serde_json::to_string(&message)),
            Err(status) => ("event: error\n", serde_json::to_string(&Refused::from(status))),
        };
        // Messages are structs of numbers, text and lists: they have a JSON form.
        let json = json.unwrap_or_else(|error| unreachable!("a message cannot be written: {error}"));
        match self {
            Self::Events => format!("{event}data: {json}\n\n").into(),
            Self::Last | Self::Lines => format!("{json}\n").into(),
        }
    }
}

/// The response that carries `messages`. A failure after the first message is a message itself, since the status has been sent.
pub(super) async fn stream<T>(form: Form, mut messages: Replies<T>) -> Result<Response, Refused>
where
    T: Serialize + Send + 'static,
{
    if form == Form::Last {
        let mut last = None;
        while let Some(message) = messages.next().await {
            last = Some(message?);
        }
        let last = last.ok_or_else(|| Status::unavailable("the answer ended before it began; try again"))?;
        return Ok(Json(last).into_response());
    }
    let frames = messages.map(move |message| Ok::<_, std::convert::Infallible>(form.frame(message)));
    let headers = [(header::CONTENT_TYPE, form.media_type()), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(frames)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a caller that gets another form than it can read.
    #[test]
    fn the_form_is_the_callers_choice() {
        let of = |accept: &str| {
            let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]);
            Form::of(&headers, Form::Last)
        };
        assert_eq!(of("text/event-stream"), Form::Events);
        assert_eq!(of("application/json, application/x-ndjson;q=0.5"), Form::Lines);
        assert_eq!((of("*/*"), Form::of(&HeaderMap::new(), Form::Events)), (Form::Last, Form::Events));
    }

    /// Catches a message that a reader of lines or events cannot tell from the next.
    #[test]
    fn frames_end() {
        let text = |form: Form, message| String::from_utf8(form.frame::<&str>(message).to_vec()).unwrap();
        assert_eq!(text(Form::Lines, Ok("a\nb")), "\"a\\nb\"\n");
        assert_eq!(text(Form::Events, Ok("x")), "data: \"x\"\n\n");
        let error = text(Form::Events, Err(Status::not_found("gone")));
        assert_eq!(error, "event: error\ndata: {\"error\":\"gone\",\"code\":\"not_found\"}\n\n");
    }
}
