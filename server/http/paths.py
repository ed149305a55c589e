"""The path of a request as the routes see it: without `root_path`, which a proxy may have left before it.

Whatever decides by a path takes it from here, so that it decides for the route that will be called.
"""

from starlette._utils import get_route_path as route_path

__all__ = ["route_path"]
