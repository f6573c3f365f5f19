//! How the messages of the contract look as JSON where the derived form would be unreadable: ids and states.
//!
//! Used by the generated code only.

/// Bytes that are an id: hexadecimal digits; empty bytes (the origin, nothing) are an empty string.
pub(crate) mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&crate::ids::hex(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = vec![0; text.len() / 2];
        match crate::ids::unhex(&text, &mut bytes) {
            true => Ok(bytes),
            false => Err(D::Error::custom(format!("{text:?} is not an id; write hexadecimal digits"))),
        }
    }
}

/// A list of ids.
pub(crate) mod hexadecimals {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Id(#[serde(with = "super::hexadecimal")] Vec<u8>);

    pub(crate) fn serialize<S: Serializer>(ids: &[Vec<u8>], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(ids.iter().map(|id| Id(id.clone())))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<u8>>, D::Error> {
        Ok(Vec::<Id>::deserialize(deserializer)?.into_iter().map(|id| id.0).collect())
    }
}

/// The state of a function on a node: `waiting`, `fetching`, `complete` or `failed`.
pub(crate) mod function_state {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::v1::FunctionState;

    const NAMES: [(FunctionState, &str); 4] = [
        (FunctionState::Waiting, "waiting"),
        (FunctionState::Fetching, "fetching"),
        (FunctionState::Complete, "complete"),
        (FunctionState::Failed, "failed"),
    ];

    pub(crate) fn serialize<S: Serializer>(state: &i32, serializer: S) -> Result<S::Ok, S::Error> {
        let name = NAMES.iter().find(|(known, _)| *known as i32 == *state);
        // A state that nobody named has not begun.
        serializer.serialize_str(name.map_or("waiting", |(_, name)| name))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
        let text = String::deserialize(deserializer)?;
        let state = NAMES.iter().find(|(_, name)| *name == text);
        state.map(|(state, _)| *state as i32).ok_or_else(|| D::Error::custom(format!("{text:?} is no state")))
    }
}

#[cfg(test)]
mod tests {
    use crate::v1;

    /// Catches a JSON form that loses something, shows ids as lists of numbers, or takes a misspelt field for an unset one.
    #[test]
    fn messages_survive_json() {
        let progress =
            v1::FunctionProgress { state: v1::FunctionState::Complete.into(), bytes_present: 7, ..Default::default() };
        let row = v1::NodeProgress { node_id: vec![0xab; 16], progress: Some(progress), ..Default::default() };
        let reply = v1::WatchReply { members: vec![row], nodes_gone: vec![vec![1, 2]], ..Default::default() };
        let text = serde_json::to_string(&reply).unwrap();
        assert!(
            text.contains(&"ab".repeat(16)) && text.contains("\"complete\"") && text.contains("[\"0102\"]"),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<v1::WatchReply>(&text).unwrap(), reply);
        assert!(serde_json::from_str::<v1::ProvisionRequest>("{\"nods\":[]}").is_err());
        assert_eq!(serde_json::from_str::<v1::ProvisionRequest>("{\"count\":3}").unwrap().count, 3);
    }
}
