"""The hot operations of sampling."""
