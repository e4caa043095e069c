"""Which wheels brought this package: the project's own, or the one that holds the kernels alone."""
from importlib import metadata

WHEELS = 'ssd4rec-jax', 'ssd4rec-pallas-kernels'


def refuse_two_versions() -> None:
    """Raise ImportError if both wheels are installed in different versions, whose files would be mixed.

    Both write the same files. In one version that is harmless, until one of them is uninstalled.
    """
    versions = {}
    for wheel in WHEELS:
        try:
            versions[wheel] = metadata.version(wheel)
        except metadata.PackageNotFoundError:
            continue
    if len(set(versions.values())) > 1:
        both = ' and '.join(f'{wheel} {version}' for wheel, version in versions.items())
        raise ImportError(
            f'{both} are installed, and both hold pallas_kernels: uninstall both, then install ssd4rec-jax, which has '
            'all of it, or ssd4rec-pallas-kernels alone'
        )
