if __name__ != "gradpath.perception":
    raise ImportError("import this area as gradpath.perception; a second copy would register every kernel twice")
