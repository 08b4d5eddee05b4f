"""The `boneage` command."""
