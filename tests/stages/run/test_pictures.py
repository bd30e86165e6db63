from torch.utils.tensorboard import SummaryWriter

from stages.run.pictures import read_curves


def test_curves_are_what_was_logged_and_unknown_names_are_left_out(tmp_path):
    with SummaryWriter(tmp_path / "tensorboard") as writer:
        for step in range(1500):  # more than TensorBoard keeps by default
            writer.add_scalar("training/loss", 0.5 * step, step)
        writer.add_scalar("validation/loss", 3.0, 7)
    found = read_curves(tmp_path, ("validation/loss", "training/loss", "training/psnr"))
    assert list(found) == ["validation/loss", "training/loss"]
    assert found["validation/loss"] == ([7], [3.0])
    assert found["training/loss"] == (list(range(1500)), [0.5 * step for step in range(1500)])
