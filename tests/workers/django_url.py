"""A SQLAlchemy URL as Django spells it."""

from sqlalchemy import make_url


def as_django(url):
    url = make_url(url)
    if url.get_backend_name() == "sqlite":
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": url.database}
    told = {"HOST": url.host, "PORT": url.port, "USER": url.username, "NAME": url.database}
    return {"ENGINE": "django.db.backends.postgresql", **told}
