//! Routes: what a request needs, by its host, path and method.

use http::Method;
use keyward_client::Request;
use serde::Deserialize;

use crate::host;
use crate::target::Target;

/// What a request needs of its key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requirements {
    /// Scopes, all of which the key needs.
    pub scopes: Vec<String>,
    /// Scopes, one of which the key needs. Empty: none is needed.
    pub any_scope: Vec<String>,
    /// The cost for limits that have none in [`costs`](Self::costs). `None`: 1.
    pub cost: Option<u32>,
    /// Costs of limits, by their names.
    pub costs: Vec<(String, u32)>,
    /// The environment that the key has to be of. `None`: any.
    pub environment: Option<String>,
}

/// What happens to the requests of a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// A key is needed.
    #[default]
    Key,
    /// No key is needed, and none is looked for.
    Open,
    /// No request is let through.
    Closed,
}

/// One entry of the list of routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Name in logs and metrics.
    pub name: String,
    /// `None`: any host.
    pub host: Option<HostPattern>,
    /// `None`: any path.
    pub path: Option<PathPattern>,
    /// Empty: any method.
    pub methods: Vec<Method>,
    /// Whether a key is needed.
    pub access: Access,
    /// What is needed of it.
    pub requirements: Requirements,
    /// Whether a request is let through while the daemon cannot be asked.
    pub fail_open: bool,
    /// Whether CORS preflight requests are let through, which browsers send without a key.
    pub cors_preflight: bool,
}

/// The host of a request: a name, or all names below one (`*.example.com`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    /// In lower case, without a port and without a dot at its end.
    name: String,
    is_wildcard: bool,
}

/// The path of a request: `/a/b`, with `*` for any one segment, and `**` at its end for the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    /// `None`: any segment, but not an empty one.
    segments: Vec<Option<Vec<u8>>>,
    /// Whether the pattern ends in `**`: any number of further segments, or none.
    has_rest: bool,
}

/// Why a pattern is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// The host is not a name.
    #[error(
        "{0:?} is not a host: expected a name such as api.example.com, or *.example.com for all names below"
    )]
    Host(String),
    /// The path is ambiguous, or not a path.
    #[error("{0:?} is not a path pattern: {1}")]
    Path(String, crate::target::TargetError),
    /// The path has a query.
    #[error("{0:?} is not a path pattern: it has a query")]
    Query(String),
    /// `**` is not the last segment, or an asterisk is a part of a segment.
    #[error(
        "{0:?} is not a path pattern: `*` stands for a whole segment, and `**` for all that follow, at the end"
    )]
    Asterisk(String),
}

/// The routes, in the order of the configuration. The first one that matches a request decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routes {
    routes: Vec<Route>,
}

impl Routes {
    /// Without a route, every request needs a key, and any key in force will do.
    pub fn new(routes: Vec<Route>) -> Self {
        if routes.is_empty() {
            Self { routes: vec![Route { name: "default".to_owned(), ..Route::default() }] }
        } else {
            Self { routes }
        }
    }

    /// The names of the routes that let requests through while the daemon cannot be asked.
    pub(crate) fn fail_open_names(&self) -> impl Iterator<Item = &str> {
        self.routes.iter().filter(|route| route.fail_open).map(|route| route.name.as_str())
    }

    /// Whether a route is for one host.
    pub(crate) fn depend_on_host(&self) -> bool {
        self.routes.iter().any(|route| route.host.is_some())
    }

    /// The route of a request to a host of this [name](host::name). `None`: no route matches, and the
    /// request is refused.
    pub fn find(&self, host: Option<&str>, target: &Target<'_>, method: &Method) -> Option<&Route> {
        self.routes.iter().find(|route| route.matches(host, target, method))
    }
}

impl Route {
    fn matches(&self, host: Option<&str>, target: &Target<'_>, method: &Method) -> bool {
        let is_host = self.host.as_ref().is_none_or(|pattern| host.is_some_and(|host| pattern.matches(host)));
        let is_path = self.path.as_ref().is_none_or(|pattern| pattern.matches(target));
        is_host && is_path && self.has_method(method)
    }

    /// A preflight asks for another method than its own, so it belongs to any route that lets it through.
    fn has_method(&self, method: &Method) -> bool {
        let is_preflight = self.cors_preflight && method == Method::OPTIONS;
        self.methods.is_empty() || self.methods.contains(method) || is_preflight
    }
}

impl Requirements {
    /// The same, at no cost.
    pub(crate) fn without_costs(&self) -> Self {
        Self { cost: Some(0), costs: Vec::new(), ..self.clone() }
    }

    /// Adds what is needed to a request about a key.
    pub fn apply<'k>(&self, mut request: Request<'k>) -> Request<'k> {
        request = if self.any_scope.is_empty() {
            request.scopes(&self.scopes)
        } else {
            request.any_scope(&self.any_scope)
        };
        if let Some(cost) = self.cost {
            request = request.cost(cost);
        }
        for (limit, cost) in &self.costs {
            request = request.cost_of(limit, *cost);
        }
        match &self.environment {
            Some(environment) => request.environment(environment.clone()),
            None => request,
        }
    }
}

impl HostPattern {
    /// Parses a host of the configuration.
    ///
    /// # Errors
    /// If it is not a name.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let (is_wildcard, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        if host::is_name(name) || (host::is_address(name) && !is_wildcard) {
            Ok(Self { name: host::normal(name), is_wildcard })
        } else {
            Err(PatternError::Host(text.to_owned()))
        }
    }

    /// Whether the pattern matches a [name](host::name).
    fn matches(&self, host: &str) -> bool {
        if self.is_wildcard {
            host.strip_suffix(&self.name).is_some_and(|below| below.len() > 1 && below.ends_with('.'))
        } else {
            host == self.name
        }
    }
}

impl PathPattern {
    /// Parses a path of the configuration.
    ///
    /// # Errors
    /// If it is ambiguous, or has an asterisk where none is allowed.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let target = Target::parse(text).map_err(|error| PatternError::Path(text.to_owned(), error))?;
        if target.query.is_some() {
            return Err(PatternError::Query(text.to_owned()));
        }
        let (segments, has_rest) = match target.segments() {
            [segments @ .., last] if last == b"**" => (segments, true),
            segments => (segments, false),
        };
        let segments = segments.iter().map(|segment| match &**segment {
            b"*" => Ok(None),
            literal if literal.contains(&b'*') => Err(PatternError::Asterisk(text.to_owned())),
            literal => Ok(Some(literal.to_owned())),
        });
        Ok(Self { segments: segments.collect::<Result<_, _>>()?, has_rest })
    }

    fn matches(&self, target: &Target<'_>) -> bool {
        let segments = target.segments();
        let has_length = match self.has_rest {
            true => segments.len() >= self.segments.len(),
            false => segments.len() == self.segments.len(),
        };
        let is_segment = |(pattern, segment): (&Option<Vec<u8>>, &Vec<u8>)| match pattern {
            Some(literal) => literal == segment,
            None => !segment.is_empty(),
        };
        has_length && self.segments.iter().zip(segments).all(is_segment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(pattern: &str) -> PathPattern {
        PathPattern::parse(pattern).expect("a pattern")
    }

    fn is_match(pattern: &str, target: &str) -> bool {
        path(pattern).matches(&Target::parse(target).expect("a target"))
    }

    #[test]
    fn path_pattern_matches_whole_segments() {
        for (pattern, matching, others) in [
            ("/", &["/", "/?a"][..], &["/a"][..]),
            ("/a", &["/a", "/%61", "/a?b"], &["/", "/A", "/a/", "/ab", "/a/b"]),
            ("/a/", &["/a/"], &["/a", "/a/b"]),
            ("/a/**", &["/a", "/a/", "/a/b", "/a/b/c"], &["/", "/ab", "/b/a"]),
            ("/**", &["/", "/a", "/a/b"], &[]),
            ("/a/*/c", &["/a/b/c", "/a/*/c"], &["/a/c", "/a/b/c/", "/a/b/d"]),
            ("/a/*", &["/a/b"], &["/a/", "/a", "/a/b/c"]),
            ("/a%20b", &["/a%20b"], &["/a+b"]),
        ] {
            for target in matching {
                assert!(is_match(pattern, target), "{pattern} {target}");
            }
            for target in others {
                assert!(!is_match(pattern, target), "{pattern} {target}");
            }
        }
    }

    #[test]
    fn ambiguous_path_pattern_is_refused() {
        for pattern in ["", "a", "/a/../b", "/a//b", "/a?b", "/a*", "/**/b", "/a/***", "/a%2fb", "/a b"] {
            assert!(PathPattern::parse(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn host_pattern_matches_regardless_of_case_and_port() {
        let is_match = |pattern: &str, host: &str| {
            let name = host::name(host);
            name.is_ok_and(|name| HostPattern::parse(pattern).expect("a pattern").matches(&name))
        };
        for host in ["api.example.com", "API.Example.com", "api.example.com:8443", "api.example.com."] {
            assert!(is_match("api.example.com", host) && is_match("*.example.com", host), "{host}");
        }
        for host in ["example.com", "apixexample.com", ".example.com", "example.com.evil.com", ""] {
            assert!(!is_match("*.example.com", host) && !is_match("api.example.com", host), "{host}");
        }
        assert!(is_match("*.example.com", "a.b.example.com"));
        assert!(is_match("[::1]", "[::1]:80") && !is_match("[::1]", "[::2]"));
        for pattern in ["", "*", "*.", "a b", "https://a", "a:80", "*.*.a", ".a"] {
            assert!(HostPattern::parse(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn first_route_that_matches_decides() {
        let route = |name: &str, pattern: &str, methods: &[Method]| Route {
            name: name.to_owned(),
            path: Some(path(pattern)),
            methods: methods.to_vec(),
            ..Route::default()
        };
        let below_host = Route {
            name: "host".to_owned(),
            host: Some(HostPattern::parse("*.example.com").expect("a pattern")),
            ..Route::default()
        };
        let preflight = Route { cors_preflight: true, ..route("browser", "/c", &[Method::POST]) };
        let routes = Routes::new(vec![
            route("read", "/a/**", &[Method::GET, Method::HEAD]),
            route("write", "/a/**", &[]),
            preflight,
            below_host,
        ]);
        let find = |host, target: &str, method| {
            let target = Target::parse(target).expect("a target");
            routes.find(host, &target, &method).map(|route| route.name.clone())
        };
        assert_eq!(find(None, "/a/b", Method::GET).as_deref(), Some("read"));
        assert_eq!(find(None, "/a/b", Method::DELETE).as_deref(), Some("write"));
        assert_eq!(find(None, "/c", Method::OPTIONS).as_deref(), Some("browser"));
        assert_eq!(find(None, "/c", Method::GET), None);
        assert_eq!(find(Some("b.example.com"), "/c", Method::GET).as_deref(), Some("host"));
        assert_eq!(find(Some("example.com"), "/d", Method::GET), None);
    }

    #[test]
    fn without_routes_every_request_needs_a_key() {
        let target = Target::parse("/any").expect("a target");
        let routes = Routes::new(Vec::new());
        let route = routes.find(None, &target, &Method::GET).expect("a route");
        assert_eq!((route.access, route.fail_open, route.cors_preflight), (Access::Key, false, false));
        assert_eq!(route.requirements, Requirements::default());
    }
}
