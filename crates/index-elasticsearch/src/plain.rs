//! Whether a document can be sent as it is, seen in one pass that keeps nothing of it: so are the lines of files, by the million.
//!
//! It says the same as [`crate::form::read`], which builds the document to find its other forms.

use std::fmt;

use logmesh_index::FieldTypes;
use logmesh_index::query::field::TIMESTAMP;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::form::{Leaf, is_named, is_one_line};
use crate::template::{Place, place};

/// True if every value of the document has a field of its own that takes it; false also of what is no document.
pub(crate) fn is_plain(body: &[u8], types: &FieldTypes) -> bool {
    if !is_one_line(body) {
        return false;
    }
    // Once for all its texts.
    let Ok(body) = std::str::from_utf8(body) else { return false };
    let mut document = Document { types, has_time: false, has_stream: false, is_plain: true };
    let mut json = serde_json::Deserializer::from_str(body);
    let read = json.deserialize_map(&mut document).and_then(|()| json.end());
    read.is_ok() && document.is_plain && document.has_time && document.has_stream
}

struct Document<'t> {
    types: &'t FieldTypes,
    has_time: bool,
    has_stream: bool,
    is_plain: bool,
}

impl<'de> Visitor<'de> for &mut Document<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a document")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        while let Some(field) = fields.next_key_seed(Key(self.types))? {
            let (is_value, is_plain) = fields.next_value_seed(&field)?;
            self.is_plain &= is_plain;
            self.has_time |= is_value && field.is_time;
            self.has_stream |= is_value && field.is_stream;
        }
        Ok(())
    }
}

/// Reads a key.
struct Key<'t>(&'t FieldTypes);

/// What is known of a key.
struct Field {
    place: Place,
    is_named: bool,
    is_time: bool,
    is_stream: bool,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Field;

    fn deserialize<D: Deserializer<'de>>(self, key: D) -> Result<Field, D::Error> {
        key.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Field, E> {
        let place = place(key, self.0);
        Ok(Field {
            is_named: is_named(&place, key),
            place,
            is_time: key == TIMESTAMP,
            is_stream: key == "logmesh.stream",
        })
    }
}

/// Reads a value: whether there is any, and whether all that there is can be sent as it is.
impl<'de> DeserializeSeed<'de> for &Field {
    type Value = (bool, bool);

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<(bool, bool), D::Error> {
        value.deserialize_any(self)
    }
}

impl Field {
    fn takes<E>(&self, leaf: Leaf<'_>) -> Result<(bool, bool), E> {
        Ok((true, self.is_named && leaf.is_as_it_is(&self.place)))
    }
}

impl<'de> Visitor<'de> for &Field {
    type Value = (bool, bool);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E>(self, text: &str) -> Result<(bool, bool), E> {
        self.takes(Leaf::Text(text))
    }

    fn visit_u64<E>(self, number: u64) -> Result<(bool, bool), E> {
        self.takes(Leaf::Number { is_whole: true, is_long: i64::try_from(number).is_ok() })
    }

    fn visit_i64<E>(self, _: i64) -> Result<(bool, bool), E> {
        self.takes(Leaf::Number { is_whole: true, is_long: true })
    }

    fn visit_f64<E>(self, _: f64) -> Result<(bool, bool), E> {
        self.takes(Leaf::Number { is_whole: false, is_long: false })
    }

    fn visit_bool<E>(self, _: bool) -> Result<(bool, bool), E> {
        self.takes(Leaf::Bool)
    }

    fn visit_unit<E>(self) -> Result<(bool, bool), E> {
        Ok((false, true))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<(bool, bool), A::Error> {
        let mut all = (false, true);
        while let Some((is_value, is_plain)) = values.next_element_seed(self)? {
            all = (all.0 | is_value, all.1 & is_plain);
        }
        Ok(all)
    }

    /// A field below this one: it is left to those who build the document.
    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(bool, bool), A::Error> {
        while fields.next_entry::<serde::de::IgnoredAny, serde::de::IgnoredAny>()?.is_some() {}
        Ok((true, false))
    }
}
