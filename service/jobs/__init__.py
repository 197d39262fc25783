"""Work that is asked for over HTTP and done in the background: indexing of uploads and of folders."""
