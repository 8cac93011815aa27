//! Where things are: coordinates, regions, and distance over the earth.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::MAX_LABEL_BYTES;

/// A point on the earth, in millionths of a degree so that it is exact and comparable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Coordinates {
    /// North is positive, −90 to 90 degrees.
    pub latitude_microdegrees: i32,
    /// East is positive, −180 to 180 degrees.
    pub longitude_microdegrees: i32,
}

/// Not coordinates.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not coordinates: latitude,longitude in degrees, for example 52.52,13.40")]
pub struct CoordinatesError(pub String);

impl Coordinates {
    /// Great-circle distance in kilometres (haversine, mean radius 6371 km).
    pub fn distance_km(self, other: Coordinates) -> f64 {
        let radians = |microdegrees: i32| (f64::from(microdegrees) / 1e6).to_radians();
        let (lat_a, lat_b) = (
            radians(self.latitude_microdegrees),
            radians(other.latitude_microdegrees),
        );
        let lat = (lat_b - lat_a) / 2.0;
        let lon =
            (radians(other.longitude_microdegrees) - radians(self.longitude_microdegrees)) / 2.0;
        let a = lat.sin().powi(2) + lat_a.cos() * lat_b.cos() * lon.sin().powi(2);
        2.0 * 6371.0 * a.sqrt().min(1.0).asin()
    }
}

impl FromStr for Coordinates {
    type Err = CoordinatesError;
    fn from_str(text: &str) -> Result<Self, CoordinatesError> {
        let parse = || {
            let (lat, lon) = text.split_once(',')?;
            let lat: f64 = lat.trim().parse().ok()?;
            let lon: f64 = lon.trim().parse().ok()?;
            let within = (-90.0..=90.0).contains(&lat) && (-180.0..=180.0).contains(&lon);
            within.then_some(Coordinates {
                latitude_microdegrees: (lat * 1e6).round() as i32,
                longitude_microdegrees: (lon * 1e6).round() as i32,
            })
        };
        parse().ok_or_else(|| CoordinatesError(text.chars().take(80).collect()))
    }
}

impl fmt::Display for Coordinates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let degrees = |microdegrees: i32| f64::from(microdegrees) / 1e6;
        write!(
            f,
            "{},{}",
            degrees(self.latitude_microdegrees),
            degrees(self.longitude_microdegrees)
        )
    }
}

/// Whether these can be a label of a node: a key of 1 to [`MAX_LABEL_BYTES`] letters, digits, `.`, `_`, `-`
/// and `/`, and a value of as many or none.
pub fn is_label(key: &str, value: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    let good = |text: &str| text.len() <= MAX_LABEL_BYTES && text.chars().all(part);
    !key.is_empty() && good(key) && good(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn berlin_is_504_km_from_munich() {
        let berlin: Coordinates = "52.52,13.405".parse().unwrap();
        let munich: Coordinates = "48.137,11.575".parse().unwrap();
        assert!((berlin.distance_km(munich) - 504.0).abs() < 2.0);
        assert!(berlin.distance_km(berlin) < 1e-6);
    }

    #[test]
    fn what_is_not_on_the_earth_is_refused() {
        for bad in ["", "1", "91,0", "0,181", "NaN,0", "a,b"] {
            assert!(bad.parse::<Coordinates>().is_err(), "{bad}");
        }
    }
}
