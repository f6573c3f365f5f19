//! Line rates as `tc` writes them: `100mbit`, `1gbit`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::LabError;

/// Bits per second on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rate(u64);

/// Slower links than this are of no use, and tbf's bucket would be larger than a second of traffic.
const LEAST_BITS: u64 = 1_000_000;

impl Rate {
    /// From bits per second.
    pub fn from_bits(bits: u64) -> Result<Self, LabError> {
        if bits >= LEAST_BITS {
            return Ok(Self(bits));
        }
        Err(LabError::Invalid(format!("{bits} bit/s is too slow for the lab; use at least 1mbit")))
    }

    /// Bits per second.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Bytes per second.
    pub fn bytes(self) -> u64 {
        self.0 / 8
    }

    /// This rate divided by `divisor`, but not below the slowest possible.
    pub fn divided(self, divisor: u64) -> Self {
        Self::nearest(self.0 / divisor.max(1))
    }

    /// So many bits per second, or the slowest possible rate.
    pub fn nearest(bits: u64) -> Self {
        Self(bits.max(LEAST_BITS))
    }
}

impl FromStr for Rate {
    type Err = LabError;

    fn from_str(text: &str) -> Result<Self, LabError> {
        let text = text.trim().to_ascii_lowercase();
        let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let scale = match unit {
            "" | "bit" => 1.0,
            "k" | "kbit" => 1e3,
            "m" | "mbit" => 1e6,
            "g" | "gbit" => 1e9,
            _ => f64::NAN,
        };
        let bits = number.trim().parse::<f64>().unwrap_or(f64::NAN) * scale;
        match (0.0..=1e12).contains(&bits) {
            true => Self::from_bits(bits as u64),
            false => Err(LabError::Invalid(format!("{text:?} is no rate; write e.g. 100mbit or 1gbit"))),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, unit) = match self.0 {
            bits if bits % 1_000_000_000 == 0 => (bits / 1_000_000_000, "gbit"),
            bits if bits % 1_000_000 == 0 => (bits / 1_000_000, "mbit"),
            bits if bits % 1_000 == 0 => (bits / 1_000, "kbit"),
            bits => (bits, "bit"),
        };
        write!(f, "{number}{unit}")
    }
}

impl TryFrom<String> for Rate {
    type Error = LabError;

    fn try_from(text: String) -> Result<Self, LabError> {
        text.parse()
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> Self {
        rate.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a rate that is off by a factor of eight or a thousand, and nonsense that passes.
    #[test]
    fn rates_are_read_and_written_as_tc_does() {
        for text in ["100mbit", "1gbit", "2500kbit", "1000001bit"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        assert_eq!("100mbit".parse::<Rate>().unwrap().bytes(), 12_500_000);
        assert_eq!("1.5g".parse::<Rate>().unwrap().to_string(), "1500mbit");
        for wrong in ["", "fast", "100mbyte", "-1mbit", "9999999gbit", "10kbit", "nan"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
    }
}
