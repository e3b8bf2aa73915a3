"""`polyshot search`."""

from polyshot.search.run import SearchResult, search

__all__ = ["SearchResult", "search"]
