//! The `WWW-Authenticate` header (RFC 9110 section 11.6.1): schemes and their quoted parameters.
//!
//! Pure parsing of a foreign header: anything that is not understood is left out, nothing panics.

/// One way to authenticate that the registry offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// Lower case: `bearer`, `basic`.
    pub(crate) scheme: String,
    params: Vec<(String, String)>,
}

impl Challenge {
    /// A parameter by its lower-case name.
    pub(crate) fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// All challenges of one header line, in order.
pub(crate) fn parse(header: &str) -> Vec<Challenge> {
    let mut rest = Cursor { rest: header };
    let mut challenges: Vec<Challenge> = Vec::new();
    loop {
        rest.skip(&[' ', '\t', ',']);
        let word = rest.token();
        if word.is_empty() {
            // Ignored: something that is neither a token nor a separator; step over it.
            if !rest.skip_one() {
                return challenges;
            }
            continue;
        }
        rest.skip(&[' ', '\t']);
        if rest.eat('=') {
            rest.skip(&[' ', '\t']);
            let value = rest.value();
            if let Some(challenge) = challenges.last_mut() {
                challenge.params.push((word.to_ascii_lowercase(), value));
            }
        } else {
            challenges.push(Challenge { scheme: word.to_ascii_lowercase(), params: Vec::new() });
        }
    }
}

struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    fn skip(&mut self, chars: &[char]) {
        self.rest = self.rest.trim_start_matches(chars);
    }

    fn skip_one(&mut self) -> bool {
        let mut chars = self.rest.chars();
        let more = chars.next().is_some();
        self.rest = chars.as_str();
        more
    }

    fn eat(&mut self, wanted: char) -> bool {
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn token(&mut self) -> &'a str {
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        let end = self.rest.find(|c| !is_token(c)).unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest;
        token
    }

    /// A quoted string with its escapes undone, or everything to the next separator.
    fn value(&mut self) -> String {
        if !self.eat('"') {
            let end = self.rest.find([',', ' ', '\t']).unwrap_or(self.rest.len());
            let (value, rest) = self.rest.split_at(end);
            self.rest = rest;
            return value.to_owned();
        }
        let mut value = String::new();
        let mut chars = self.rest.chars();
        while let Some(c) = chars.next() {
            match c {
                '"' => break,
                '\\' => value.extend(chars.next()),
                c => value.push(c),
            }
        }
        self.rest = chars.as_str();
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a comma inside a quoted scope that ends the parameter: then the token lacks rights.
    #[test]
    fn quoted_parameters_keep_their_commas() {
        let header = r#"Bearer realm="https://auth.example/token",service="registry, \"main\"",scope="repository:a/b:pull,push" , error=invalid_token"#;
        let got = parse(header);
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].scheme, "bearer");
        assert_eq!(got[0].param("realm"), Some("https://auth.example/token"));
        assert_eq!(got[0].param("service"), Some("registry, \"main\""));
        assert_eq!(got[0].param("scope"), Some("repository:a/b:pull,push"));
        assert_eq!(got[0].param("error"), Some("invalid_token"));
    }

    /// Catches a second scheme in the same line that is lost.
    #[test]
    fn several_challenges_in_one_line() {
        let got = parse(r#"Negotiate, Basic realm="x y", Bearer Realm = "http://r/t""#);
        assert_eq!(got.iter().map(|c| &*c.scheme).collect::<Vec<_>>(), ["negotiate", "basic", "bearer"]);
        assert_eq!(got[2].param("realm"), Some("http://r/t"));
    }

    /// Catches a foreign header that makes us panic or loop.
    #[test]
    fn rubbish_is_harmless() {
        for header in
            ["", ",,,", "=", "\"", "Bearer realm=\"unterminated", "Bearer realm=\"x\\", "@@@ Basic", "é=ü", "a=b"]
        {
            parse(header);
        }
        assert_eq!(parse("@@@ Basic").len(), 1);
    }
}
