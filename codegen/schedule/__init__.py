"""The only home of tile sizes, warps, stages and memory scopes."""
