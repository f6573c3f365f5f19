//! The origins that the feed reads, opened once each: both stripes of an image share connections and access tokens.
//!
//! Also what the controller said of private registries, per function: kept in memory only, and used where this host's own configuration
//! knows nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use faasnet_api::{FunctionId, Origin};
use faasnet_origin::{Credentials, Error, Source, SourceOptions};

/// As many as a node has functions; a source that was put out is only opened again.
const MAX_SOURCES: usize = 20;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    open: Mutex<VecDeque<Opened>>,
    logins: Mutex<HashMap<FunctionId, Credentials>>,
}

#[derive(Debug)]
struct Opened {
    origin: Origin,
    login: Option<Credentials>,
    source: Source,
}

impl Sources {
    /// What the controller says now of the function's registry. Sources with what it said before are used no more.
    pub(crate) fn tell(&self, function: FunctionId, login: Option<Credentials>) {
        let mut logins = lock(&self.logins);
        let before = match &login {
            Some(login) => logins.insert(function, login.clone()),
            None => logins.remove(&function),
        };
        drop(logins);
        if before.is_some() && before != login {
            lock(&self.open).retain(|opened| opened.login != before);
        }
    }

    /// The source of a function's `origin`. Opening one reads certificates and the layout's marker, so call it off the async threads.
    pub(super) fn get(&self, function: FunctionId, origin: &Origin) -> Result<Source, Error> {
        let login = lock(&self.logins).get(&function).cloned();
        let mut sources = lock(&self.open);
        // Not one of another login: it holds that one's token, which another tenant's function may have got.
        let same = |opened: &&Opened| opened.origin == *origin && opened.login == login;
        if let Some(opened) = sources.iter().find(same) {
            return Ok(opened.source.clone());
        }
        let source =
            Source::from_origin_with(origin, &SourceOptions { login: login.clone(), ..SourceOptions::default() })?;
        if sources.len() == MAX_SOURCES {
            sources.pop_front();
        }
        sources.push_back(Opened { origin: origin.clone(), login, source: source.clone() });
        Ok(source)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a password, and the token that it got, that are used on after the controller has changed or removed it.
    #[test]
    fn what_was_told_before_is_forgotten() {
        let (sources, function) = (Sources::default(), FunctionId::new("t", "f"));
        let origin = Origin::Registry { base_url: "https://r.example".into(), repository: "app".into(), ranges: true };
        let told = |password: &str| Some(Credentials { username: "robot".into(), password: password.into() });
        let opened = || lock(&sources.open).iter().map(|opened| opened.login.clone()).collect::<Vec<_>>();
        sources.get(FunctionId::new("t", "public"), &origin).unwrap();
        for login in [told("old"), told("new"), told("new"), None] {
            sources.tell(function, login.clone());
            sources.get(function, &origin).unwrap();
            let mut expected = vec![None];
            expected.extend(login.map(Some));
            assert_eq!(opened(), expected);
        }
        assert!(lock(&sources.logins).is_empty());
    }
}
