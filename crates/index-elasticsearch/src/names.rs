//! Names in Elasticsearch: `logmesh-nginx@2026.01.31` is the index of a slice.
//!
//! `@` can't stand in a topic's name or in a prefix, so that `logmesh-nginx@*` is the indices of this topic and of no
//! other, and a name can be read back. A topic has 64 bytes at most, a prefix 100: far below the 255 allowed.

use logmesh_index::Slice;
use logmesh_types::TopicName;

/// Makes and reads names.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    prefix: String,
}

impl Names {
    pub(crate) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The index of a slice; `None` if its date isn't one.
    pub(crate) fn index(&self, slice: &Slice) -> Option<String> {
        let date = slice.date.as_bytes();
        let is_date = date.len() == 10
            && date.iter().enumerate().all(|(at, byte)| match at {
                4 | 7 => *byte == b'-',
                _ => byte.is_ascii_digit(),
            });
        is_date.then(|| format!("{}{}@{}", self.prefix, slice.topic, slice.date.replace('-', ".")))
    }

    /// The alias that an index is written through. Bulks require an alias, so that a bulk never makes an index: one that
    /// isn't there is made with our mapping first, whatever became of the template.
    pub(crate) fn alias(index: &str) -> String {
        format!("{index}.write")
    }

    /// The index template of a topic.
    pub(crate) fn template(&self, topic: &TopicName) -> String {
        format!("{}{topic}", self.prefix)
    }

    /// All templates of ours, and maybe others.
    pub(crate) fn all_templates(&self) -> String {
        format!("{}*", self.prefix)
    }

    /// The topic of a template's name.
    pub(crate) fn topic_of_template(&self, name: &str) -> Option<TopicName> {
        name.strip_prefix(&self.prefix)?.parse().ok()
    }

    /// What the names of a topic's indices begin with.
    pub(crate) fn of_topic(&self, topic: &TopicName) -> String {
        format!("{}{topic}@", self.prefix)
    }

    /// All indices of a topic.
    pub(crate) fn indices(&self, topic: &TopicName) -> String {
        format!("{}*", self.of_topic(topic))
    }

    /// All indices of all topics.
    pub(crate) fn all_indices(&self) -> String {
        format!("{}*@*", self.prefix)
    }

    /// The topic of an index.
    pub(crate) fn topic_of(&self, index: &str) -> Option<TopicName> {
        let (topic, _date) = index.strip_prefix(&self.prefix)?.split_once('@')?;
        topic.parse().ok()
    }

    /// The date of an index of this topic.
    pub(crate) fn date_of(&self, topic: &TopicName, index: &str) -> Option<String> {
        let date = index.strip_prefix(&self.of_topic(topic))?.replace('.', "-");
        let slice = Slice { topic: topic.clone(), date };
        (self.index(&slice)? == index).then_some(slice.date)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_back() {
        let names = Names::new("logmesh-");
        let slice = |topic: &str, date: &str| Slice { topic: topic.parse().unwrap(), date: date.to_owned() };
        let slice_a = slice("nginx-access.2", "2026-01-31");
        let index = names.index(&slice_a).unwrap();
        assert_eq!(index, "logmesh-nginx-access.2@2026.01.31");
        assert_eq!(names.date_of(&slice_a.topic, &index).as_deref(), Some("2026-01-31"));
        for other in
            ["logmesh-nginx-access.2@2026-01-31", "logmesh-nginx-access.2@2026.01.31.1", "logmesh-nginx@2026.01.31"]
        {
            assert_eq!(names.date_of(&slice_a.topic, other), None);
        }
        assert_eq!(names.topic_of(&index), Some(slice_a.topic));
        for date in ["2026-1-31", "", "../../etc/x", "2026-01-3*"] {
            assert_eq!(names.index(&slice("a", date)), None);
        }
        assert_eq!(names.topic_of("other-a@2026.01.31"), None);
        assert_eq!(names.topic_of("logmesh-a"), None);
    }
}
