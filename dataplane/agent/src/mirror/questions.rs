//! The images that runtimes asked for and the controller has not answered yet.
//!
//! Owned by the control side. Pure: who waits is told through its channel, and learns that there will be no answer from the channel's end.

use std::collections::BTreeMap;

use faasnet_api::FunctionId;
use tokio::sync::oneshot;

/// Where an answer goes: the function that has the image and that this node is joining, or why there is none.
pub(crate) type ImageAnswer = oneshot::Sender<Result<FunctionId, String>>;

/// What is asked of the controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wish {
    /// In the one spelling.
    pub(crate) reference: String,
    /// Make a function of it if there is none.
    pub(crate) register: bool,
    /// Without TLS.
    pub(crate) plain_http: bool,
}

/// Images that may be asked for at a time; the oldest question is given up beyond that.
const MAX_IMAGES: usize = 64;
/// Who may wait for one image.
const MAX_WAITERS: usize = 64;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct ImageQuestions {
    open: BTreeMap<u64, Question>,
    last: u64,
}

#[derive(Debug)]
struct Question {
    reference: String,
    waiting: Vec<ImageAnswer>,
}

impl ImageQuestions {
    /// Somebody wants to know who has `reference`. The number under which to ask the controller; `None`: it has been asked already. Where
    /// nobody waits any more it is asked again: the question, or its answer, may have been lost.
    pub(crate) fn ask(&mut self, reference: &str, answer: ImageAnswer) -> Option<u64> {
        if let Some((request, question)) = self.open.iter_mut().find(|(_, question)| question.reference == reference) {
            question.waiting.retain(|waiting| !waiting.is_closed());
            if !question.waiting.is_empty() {
                if question.waiting.len() < MAX_WAITERS {
                    question.waiting.push(answer);
                }
                return None;
            }
            let unanswered = *request;
            self.open.remove(&unanswered);
        }
        if self.open.len() >= MAX_IMAGES {
            self.open.pop_first();
        }
        self.last += 1;
        self.open.insert(self.last, Question { reference: reference.into(), waiting: vec![answer] });
        Some(self.last)
    }

    /// The controller has answered.
    pub(crate) fn answer(&mut self, request: u64, answer: &Result<FunctionId, String>) {
        for waiting in self.open.remove(&request).map(|question| question.waiting).unwrap_or_default() {
            // Ignored: whoever does not wait any more does not need it.
            let _ = waiting.send(answer.clone());
        }
    }

    /// Nobody will answer.
    pub(crate) fn clear(&mut self) {
        self.open.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches an image that cannot be pulled for the rest of a session because one event was lost.
    #[test]
    fn a_lost_question_is_asked_again() {
        let mut questions = ImageQuestions::default();
        let (first, heard) = oneshot::channel();
        let lost = questions.ask("r/a:1", first).unwrap();
        drop(heard);
        let (second, mut heard) = oneshot::channel();
        let request = questions.ask("r/a:1", second).unwrap();
        assert_ne!(lost, request);
        questions.answer(lost, &Err("late".into()));
        questions.answer(request, &Ok(FunctionId::new("t", "f")));
        assert_eq!(heard.try_recv(), Ok(Ok(FunctionId::new("t", "f"))));
        assert!(questions.open.is_empty());
    }

    /// Catches a burst of runtimes that makes a burst of questions, an answer that reaches only one of them, and questions without end.
    #[test]
    fn one_question_per_image() {
        let mut questions = ImageQuestions::default();
        let (first, mut heard_first) = oneshot::channel();
        let (second, mut heard_second) = oneshot::channel();
        let request = questions.ask("r/a:1", first).unwrap();
        assert_eq!(questions.ask("r/a:1", second), None);
        let function = FunctionId::new("t", "f");
        questions.answer(request, &Ok(function));
        assert_eq!((heard_first.try_recv(), heard_second.try_recv()), (Ok(Ok(function)), Ok(Ok(function))));
        let (oldest, mut never) = oneshot::channel();
        questions.ask("r/a:1", oldest).unwrap();
        for n in 0..MAX_IMAGES {
            questions.ask(&n.to_string(), oneshot::channel().0).unwrap();
        }
        assert_eq!(never.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert_eq!(questions.open.len(), MAX_IMAGES);
    }
}
